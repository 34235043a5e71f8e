// Embeds texts with one client of an npm package: node node.mjs NAME, where NODE_PATH's folder has that package.
// Reads {"url": of the server, "texts": [...]} as JSON, and prints a list of vectors.
import { readFileSync } from "node:fs";
import { createRequire } from "node:module";
import { pathToFileURL } from "node:url";

const MODEL = "tiny";
const require = createRequire(pathToFileURL(`${process.env.NODE_PATH}/`));
const load = (name) => import(pathToFileURL(require.resolve(name)));

const clients = {
  async openai(url, texts) {
    const { OpenAI } = await load("openai");
    const answer = await new OpenAI({ baseURL: `${url}/v1`, apiKey: "none" }).embeddings.create({ model: MODEL, input: texts });
    return answer.data.map((row) => row.embedding);
  },
  async huggingface(url, texts) {
    const { InferenceClient } = await load("@huggingface/inference");
    return new InferenceClient("none").featureExtraction({ endpointUrl: url, inputs: texts });
  },
  async langchain(url, texts) {
    const { OpenAIEmbeddings } = await load("@langchain/openai");
    const configuration = { baseURL: `${url}/v1` };
    return new OpenAIEmbeddings({ apiKey: "none", model: MODEL, configuration }).embedDocuments(texts);
  },
  async ai_sdk(url, texts) {
    const { embedMany } = await load("ai");
    const { createOpenAICompatible } = await load("@ai-sdk/openai-compatible");
    const provider = createOpenAICompatible({ name: "vecferry", baseURL: `${url}/v1` });
    return (await embedMany({ model: provider.textEmbeddingModel(MODEL), values: texts })).embeddings;
  },
};

const { url, texts } = JSON.parse(readFileSync(0, "utf8"));
console.log(JSON.stringify(await clients[process.argv[2]](url, texts)));
