// Requests to the history's routes.

import { api } from "../../../scripts/api.js";

const path = (run, what) => `/animelora/runs/${encodeURIComponent(run)}${what}`;

// Each returns the answer as data; `error` in it is a sentence.
export const readHistory = () => ask("/animelora/history");
export const readRun = (run) => ask(path(run, ""));
export const readSettings = (run) => ask(path(run, "/settings"));
export const readPublished = (run) => ask(path(run, "/published"));
export const deleteRun = (run, lora) => ask(path(run, "/delete"), { lora });
export const deleteStep = (run, step) => ask(path(run, "/delete_step"), { step });

async function ask(route, data) {
  const sent = data && { method: "POST", headers: { "Content-Type": "application/json" }, body: JSON.stringify(data) };
  try {
    const answer = await api.fetchApi(route, sent);
    const result = await answer.json();
    return answer.ok || result.error ? result : { error: answer.statusText };
  } catch (error) {
    return { error: error.message };
  }
}
