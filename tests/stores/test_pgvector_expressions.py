"""One column in the place of another, in expressions as PostgreSQL writes them."""

import pytest

from vecferry.stores.pgvector.expressions import names_in, over_another, unquoted

CASES = [
    ("embedding", "hnsw (COLUMN public.vector_cosine_ops) WITH (m='8')"),
    ("embedding", "((COLUMN)::public.halfvec(LENGTH))"),
    ("embedding", '((COLUMN)::"of a.b".vector(LENGTH))'),
    ("embedding", "((public.binary_quantize(COLUMN))::bit(LENGTH))"),
    ("embedding", "((public.subvector(COLUMN, 1, 4))::public.vector(4))"),
    ("embedding", "((COLUMN IS NOT NULL) AND (body <> 'embedding'::text))"),
    ("embedding", "(body <> E'it\\'s embedding')"),
    ("embedding", "public.embedding(embedding2, COLUMN)"),
    ("vector", "hnsw (COLUMN vector.vector_l2_ops) WHERE (COLUMN IS NOT NULL)"),
    ("vector", "(((COLUMN)::vector.vector)::vector.halfvec(LENGTH))"),
    ('"a ""b"""', 'hnsw (COLUMN x, "a b" y)'),
]


@pytest.mark.parametrize(("column", "template"), CASES)
def test_another_column_and_length_take_the_place(column: str, template: str) -> None:
    before = template.replace("COLUMN", column).replace("LENGTH", "8")
    after = template.replace("COLUMN", '"n w"').replace("LENGTH", "16")
    assert over_another(before, (unquoted(column), "n w"), (8, 16)) == after


def test_names_are_told_from_texts() -> None:
    expression = "Upper(title) || docs.\"The Body\" || 'not this' || E'nor\\' this'"
    assert set(names_in(expression)) == {"upper", "title", "docs", "The Body"}
    assert set(names_in(expression, calls=True)) == {"upper"}
