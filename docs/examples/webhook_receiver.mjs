// Receives Tieryard's webhooks: verifies who sent them, takes each message once, and answers before it works.
//
//     WEBHOOK_SECRET=whsec_… node webhook_receiver.mjs 8080
//
// Node 18 or newer, no packages. The signature is Standard Webhooks': HMAC-SHA256 of "id.timestamp.body" in base64.

import { createHmac, timingSafeEqual } from "node:crypto";
import { createServer } from "node:http";

// Two, with a space between them, while the secret is changed.
const SECRETS = (process.env.WEBHOOK_SECRET ?? "").split(" ").filter(Boolean).map(readSecret);
const MOST_BYTES = 100_000; // a message has fewer than 20,000
const TOLERANCE_S = 5 * 60; // a message that was recorded cannot be played again later

const seen = new Set(); // a real receiver keeps these ids in its database, beside what they led to

function readSecret(text) {
  if (!text.startsWith("whsec_")) throw new Error("WEBHOOK_SECRET: expected whsec_…");
  return Buffer.from(text.slice("whsec_".length), "base64");
}

function verified(body, headers) {
  const id = headers["webhook-id"];
  const timestamp = headers["webhook-timestamp"];
  const given = headers["webhook-signature"];
  if (!id || !given || !/^\d+$/.test(timestamp ?? "")) return false;
  if (Math.abs(Date.now() / 1000 - Number(timestamp)) > TOLERANCE_S) return false;
  const signatures = given
    .split(" ")
    .filter((one) => one.startsWith("v1,"))
    .map((one) => Buffer.from(one.slice("v1,".length), "base64"));
  return SECRETS.some((secret) => {
    const wanted = createHmac("sha256", secret).update(`${id}.${timestamp}.`).update(body).digest();
    return signatures.some((one) => one.length === wanted.length && timingSafeEqual(one, wanted));
  });
}

async function read(request) {
  const parts = [];
  let bytes = 0;
  for await (const part of request) {
    bytes += part.length;
    if (bytes > MOST_BYTES) return null;
    parts.push(part);
  }
  return Buffer.concat(parts); // the raw bytes: JSON that was parsed and written again has another signature
}

async function receive(request, response) {
  if (request.method !== "POST") return answer(response, 405);
  const body = await read(request);
  if (body === null) return answer(response, 413);
  if (!verified(body, request.headers)) return answer(response, 401);
  // Deliveries are at least once: the same message may come again, under the same id.
  const message = request.headers["webhook-id"];
  if (!seen.has(message)) {
    const told = JSON.parse(body.toString("utf8"));
    seen.add(message);
    if (seen.size > 100_000) seen.delete(seen.values().next().value);
    setImmediate(work, message, told); // what takes long happens after the answer
  }
  answer(response, 204);
}

function answer(response, status) {
  response.writeHead(status).end();
}

function work(message, told) {
  console.log(message, told.type, told.data.id); // told.data.url has the whole job, for those with a key
}

if (SECRETS.length === 0) throw new Error("set WEBHOOK_SECRET to the endpoint's secret");
const server = createServer((request, response) => {
  receive(request, response).catch(() => {
    if (!response.headersSent) answer(response, 400);
  });
});
server.requestTimeout = 10_000;
server.listen(Number(process.argv[2] ?? 8080), "127.0.0.1", () => {
  console.log(`listening on http://127.0.0.1:${server.address().port}/`);
});
