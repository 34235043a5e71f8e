"""Retrieval quality: the old and the new side asked the same questions, and what a switch would change.

qrels.py       judged queries, and the folder in BEIR layout
questions.py   what is asked, and into which slices it falls; pairs.py makes questions where nobody judged any
corpora.py     where the passages are: a folder, a live store
retrieval.py   questions to rankings and values; ranking.py, metrics.py, hybrid.py
comparing.py   by query and by slice; statistics.py says how sure that is; gate.py, whether it is enough
thresholds.py  cut-offs of the old space in the new one
replay.py, distributions.py, findings.py, space_map.py   what else there is to see
evaluation.py  puts it all into one `Evaluation` (values.py), from which a report is drawn
"""

from vecferry.evaluate.corpora import Corpus, EvaluatedModel, FolderCorpus, StoreCorpus
from vecferry.evaluate.evaluation import EvaluationOptions, run_evaluation
from vecferry.evaluate.qrels import LabelledSet, read_beir, read_queries
from vecferry.evaluate.questions import QuerySet, read_log
from vecferry.evaluate.values import Evaluation, JudgedQueries, Judgement, Passage, Question

__all__ = [
    "Corpus",
    "EvaluatedModel",
    "Evaluation",
    "EvaluationOptions",
    "FolderCorpus",
    "JudgedQueries",
    "Judgement",
    "LabelledSet",
    "Passage",
    "QuerySet",
    "Question",
    "StoreCorpus",
    "read_beir",
    "read_log",
    "read_queries",
    "run_evaluation",
]
