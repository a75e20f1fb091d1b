// A question with Cancel and one other answer, asked in place.

import { element } from "../panel/dom.js";

// Ask in `place`. Resolves to null for Cancel, else to whether the box `option` was ticked. The focus returns to `from`.
export function ask(place, from, { text, option, yes, no }) {
  return new Promise((resolve) => {
    const box = option ? element("input", { type: "checkbox" }) : null;
    const cancel = element("button", { type: "button" }, no), act = element("button", { type: "button", class: "danger" }, yes);
    const question = element(
      "div",
      { class: "question", role: "alertdialog", "aria-label": text },
      element("p", {}, text),
      ...(box ? [element("label", {}, box, option)] : []),
      element("div", { class: "buttons" }, act, cancel),
    );
    const answer = (value) => {
      question.remove();
      from.focus();
      resolve(value);
    };
    cancel.addEventListener("click", () => answer(null));
    act.addEventListener("click", () => answer(!!box?.checked));
    question.addEventListener("keydown", (event) => {
      if (event.key !== "Escape") return;
      event.stopPropagation();
      answer(null);
    });
    place.replaceChildren(question);
    cancel.focus();
  });
}
