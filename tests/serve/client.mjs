// OpenAI's own client for JavaScript, at the end of two pipes: a line of JSON in is a call, a line of JSON out is what
// came back. `node client.mjs FOLDER`: the folder is the one that the package was installed into.
import { createRequire } from "node:module";
import { join, resolve } from "node:path";
import { createInterface } from "node:readline";
import { pathToFileURL } from "node:url";

const require = createRequire(join(resolve(process.argv[2]), "package.json"));
const { default: OpenAI } = await import(pathToFileURL(require.resolve("openai")));

let begun; // a stream that nobody has read to its end

const calls = {
  version: () => require("openai/package.json").version,

  models: async (client) => {
    const found = [];
    for await (const model of client.models.list()) found.push(model);
    return found;
  },

  model: (client, { name }) => client.models.retrieve(name),

  create: (client, { body }) => client.chat.completions.create(body),

  stream: async (client, { body }) => {
    const chunks = [];
    for await (const chunk of await client.chat.completions.create({ ...body, stream: true })) chunks.push(chunk);
    return chunks;
  },

  // The client's helper puts chunks together by itself, and checks them as it does
  assembled: async (client, { body }) => {
    const heard = [];
    const stream = client.chat.completions.stream(body);
    stream.on("content", (delta) => heard.push(delta));
    return { whole: await stream.finalChatCompletion(), heard };
  },

  // The first chunk, and the ways in which apps stop a stream then
  begin: async (client, { body, way }) => {
    const own = new AbortController();
    const stream = await client.chat.completions.create({ ...body, stream: true }, { signal: own.signal });
    const chunks = stream[Symbol.asyncIterator]();
    const { value } = await chunks.next();
    begun = {
      chunks,
      hangUp: { signal: () => own.abort(), controller: () => stream.controller.abort(), leave: () => chunks.return() }[way],
    };
    return value;
  },

  hangUp: async () => {
    await begun.hangUp();
    let late = 0; // chunks that had arrived already
    while (!(await begun.chunks.next()).done) late += 1;
    return late;
  },
};

const told = (error) => ({
  class: error.constructor.name,
  isAPIError: error instanceof OpenAI.APIError,
  status: error.status,
  code: error.code,
  type: error.type,
  param: error.param,
  message: error.message,
});

for await (const line of createInterface({ input: process.stdin })) {
  const { call, options, ...rest } = JSON.parse(line);
  let reply;
  try {
    reply = { value: await calls[call](new OpenAI({ maxRetries: 0, timeout: 120_000, ...options }), rest) };
  } catch (error) {
    reply = { error: told(error) };
  }
  process.stdout.write(JSON.stringify(reply) + "\n");
}
