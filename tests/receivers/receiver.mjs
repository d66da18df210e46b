// Receives deliveries on /<name> and asks the official JavaScript verifiers about them; see
// receiver.py, which does the same.

import http from "node:http";
import { verify as github } from "@octokit/webhooks-methods";
import "@shopify/shopify-api/adapters/node";
import { shopifyApi } from "@shopify/shopify-api";
import { Signature } from "@hubspot/api-client";
import XHubSignature from "x-hub-signature";
import { WebhookVerificationService } from "@hookflo/tern";
import { Webhook as Svix } from "svix";
import { Webhook as Standard } from "standardwebhooks";
import twilio from "twilio";

const { TEXT, WHSEC } = process.env;
const OTHER_TEXT = [...TEXT].reverse().join("");
const OTHER_WHSEC = "whsec_" + Buffer.alloc(32, "x").toString("base64");

const shopify = (secret) =>
  shopifyApi({
    apiKey: "key",
    apiSecretKey: secret,
    apiVersion: "2025-10",
    hostName: "h.example.com",
    isEmbeddedApp: false,
    logger: { level: 0 },
  });

const githubForm = async ({ body, headers }, secret) =>
  JSON.parse(new URLSearchParams(body).get("payload")) &&
  github(secret, body, headers["x-hub-signature-256"]);

const verifiers = {
  github: async ({ body, headers }, secret) =>
    headers["x-github-event"] !== undefined &&
    /^[0-9a-f-]{36}$/.test(headers["x-github-delivery"]) &&
    github(secret, body, headers["x-hub-signature-256"]),
  "github-form": githubForm,
  "github-made": githubForm,
  shopify: async ({ body, headers, url }, secret) => {
    const rawRequest = { method: "POST", url, headers };
    const said = await shopify(secret).webhooks.validate({ rawBody: body, rawRequest, rawResponse: {} });
    return said.valid;
  },
  woocommerce: async ({ body, headers, url }, secret) => {
    const request = new Request(url, { method: "POST", headers, body });
    const said = await WebhookVerificationService.verify(request, { platform: "woocommerce", secret });
    return said.isValid;
  },
  intercom: async ({ body, headers }, secret) =>
    new XHubSignature("sha1", secret).verify(headers["x-hub-signature"], body),
  hubspot: async ({ method, body, headers, url }, secret) =>
    Signature.isValid({
      signatureVersion: "v3",
      method,
      url,
      requestBody: body,
      clientSecret: secret,
      signature: headers["x-hubspot-signature-v3"],
      timestamp: Number(headers["x-hubspot-request-timestamp"]),
    }),
  svix: async ({ body, headers }, secret) => Boolean(new Svix(secret).verify(body, headers)),
  standard: async ({ body, headers }, secret) => Boolean(new Standard(secret).verify(body, headers)),
  "twilio-form": async ({ body, headers, url }, secret) =>
    twilio.validateRequest(
      secret,
      headers["x-twilio-signature"],
      url,
      Object.fromEntries(new URLSearchParams(body)),
    ),
  "twilio-json": async ({ body, headers, url }, secret) =>
    twilio.validateRequestWithBody(secret, headers["x-twilio-signature"], url, body),
};

const signatures = {
  github: "x-hub-signature-256",
  "github-form": "x-hub-signature-256",
  "github-made": "x-hub-signature-256",
  shopify: "x-shopify-hmac-sha256",
  woocommerce: "x-wc-webhook-signature",
  intercom: "x-hub-signature",
  hubspot: "x-hubspot-signature-v3",
  svix: "svix-signature",
  standard: "webhook-signature",
  "twilio-form": "x-twilio-signature",
  "twilio-json": "x-twilio-signature",
};
const timestamps = {
  hubspot: "x-hubspot-request-timestamp",
  svix: "svix-timestamp",
  standard: "webhook-timestamp",
};

const believed = async (name, request, secret) => {
  try {
    return (await verifiers[name](request, secret)) ? [true, ""] : [false, "no"];
  } catch (why) {
    return [false, String(why)];
  }
};

async function judge(name, request) {
  const keyed = ["svix", "standard"].includes(name);
  const [right, wrong] = keyed ? [WHSEC, OTHER_WHSEC] : [TEXT, OTHER_TEXT];
  const [accepted, why] = await believed(name, request, right);
  const refused = {};
  const refuses = async (kind, changed, secret = right) => {
    refused[kind] = !(await believed(name, { ...request, ...changed }, secret))[0];
  };
  const body = request.body.replace("4711", "4712");
  if (body === request.body) throw new Error("nothing to change in " + body);
  await refuses("body", { body });
  const at = request.headers[signatures[name]].length - 8;
  const text = [...request.headers[signatures[name]]];
  text[at] = text[at] === "B" ? "C" : "B";
  await refuses("signature", { headers: { ...request.headers, [signatures[name]]: text.join("") } });
  await refuses("secret", {}, wrong);
  const timestamp = timestamps[name];
  if (timestamp) {
    const later = String(Number(request.headers[timestamp]) + 1);
    await refuses("timestamp", { headers: { ...request.headers, [timestamp]: later } });
  }
  return { accepted, why, refused };
}

const results = {};
const server = http.createServer(async (incoming, answer) => {
  if (incoming.method === "GET") return answer.end(JSON.stringify(results));
  const parts = [];
  for await (const part of incoming) parts.push(part);
  const name = incoming.url.split("?")[0].slice(1);
  const { method, headers } = incoming;
  const url = `http://${headers.host}${incoming.url}`;
  const body = Buffer.concat(parts).toString("utf8");
  try {
    results[name] = await judge(name, { method, url, headers, body });
  } catch (why) {
    results[name] = { accepted: false, why: String(why), refused: {} };
  }
  answer.writeHead(results[name].accepted ? 204 : 401).end();
});
server.listen(0, "127.0.0.1", () => console.log(server.address().port));
// Ends with whoever has started it.
process.stdin.on("end", () => process.exit(0)).resume();
