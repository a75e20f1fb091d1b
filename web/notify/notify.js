// Notifications of the browser when a training ends or fails while the page is in the background. They are off until the user clicks the bell.

import { element } from "../panel/dom.js";
import { notifyWords } from "./words.js";

const WANTED = "animelora.notify"; // in the browser's storage
const BELLS = new Set(); // in all open panels: each shows the same state

// Browsers offer notifications to pages of this computer and of https addresses only.
const canNotify = () => "Notification" in window && window.isSecureContext;

function isOn() {
  return canNotify() && Notification.permission === "granted" && localStorage.getItem(WANTED) === "yes";
}

// A button that turns notifications on and off. The browser asks for permission at the first click.
export function bell() {
  const made = element("button", { type: "button", class: "bell", hidden: !canNotify() });
  made.addEventListener("click", toggle);
  BELLS.add(new WeakRef(made));
  draw(made);
  return made;
}

async function toggle() {
  const wanted = !isOn();
  if (wanted && Notification.permission === "default") await Notification.requestPermission();
  localStorage.setItem(WANTED, wanted ? "yes" : "no");
  for (const each of BELLS) {
    const button = each.deref();
    if (button) draw(button, wanted);
    else BELLS.delete(each);
  }
}

// `asked`: the user has just asked for notifications.
function draw(button, asked = false) {
  const texts = notifyWords();
  const blocked = canNotify() && Notification.permission === "denied";
  button.textContent = isOn() ? `✓ ${texts.on}` : blocked && asked ? texts.blocked : texts.off;
  button.title = blocked ? texts.blocked : texts.tip;
  button.setAttribute("aria-pressed", String(isOn()));
}

// Show a notification if the user wants them and does not see the page.
export function notify(title, body) {
  if (!isOn() || !document.hidden) return;
  const shown = new Notification(title, { body, tag: `animelora ${title} ${body}` });
  shown.onclick = () => {
    window.focus();
    shown.close();
  };
}
