// What changes things: POSTs with the token, which came in the address's fragment and stays in this tab alone.

import { $ } from "./words.js";

const KEY = "xen-bypass-lab-token";

function token() {
  const given = new URLSearchParams(location.hash.slice(1)).get("token");
  if (given) {
    sessionStorage.setItem(KEY, given);
    history.replaceState(null, "", location.pathname);
  }
  return sessionStorage.getItem(KEY);
}

const TOKEN = token();
export const mayControl = TOKEN !== null;

export async function control(verb, args) {
  say("…");
  try {
    const answer = await fetch(`/do/${verb}`, {
      method: "POST",
      headers: { "Content-Type": "application/json", "X-Lab-Token": TOKEN ?? "" },
      body: JSON.stringify(args),
    });
    const said = await answer.json();
    say(said.done ?? said.error, !answer.ok);
    return answer.ok;
  } catch {
    say("the server does not answer", true);
    return false;
  }
}

function say(text, refused = false) {
  $("done").textContent = text;
  $("done").classList.toggle("refused", refused);
}
