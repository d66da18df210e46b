// Runs the `verify` of a page of docs/receivers on requests, and prints what it says of each.

import { readFileSync } from "node:fs";
import { pathToFileURL } from "node:url";

const { verify } = await import(pathToFileURL(process.argv[2]));
const asked = JSON.parse(readFileSync(0, "utf8"));
const said = {};
for (const one of asked.cases) {
  one.body = Buffer.from(one.body, "base64");
  try {
    said[one.name] = await verify(...asked.arguments.map((name) => one[name]));
  } catch (why) {
    said[one.name] = String(why);
  }
}
console.log(JSON.stringify(said));
