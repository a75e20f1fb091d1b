// Helpers to build and style DOM elements.

// An element with attributes and children (strings become text, never markup).
export function element(tag, attributes = {}, ...children) {
  const made = document.createElement(tag);
  for (const [name, value] of Object.entries(attributes)) {
    if (name === "draggable" || name === "hidden") made[name] = value;
    else made.setAttribute(name, value);
  }
  made.append(...children);
  return made;
}

// Load a stylesheet, once.
export function loadStyle(url) {
  const href = url.href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return;
  document.head.append(element("link", { rel: "stylesheet", href }));
}

// Copy text and confirm it on the button. Browsers deny the clipboard to http pages of other machines: then show the text in a dialog.
export async function toClipboard(text, button, copied) {
  const label = button.textContent;
  try {
    await navigator.clipboard.writeText(text);
    button.textContent = copied;
    setTimeout(() => (button.textContent = label), 1200);
  } catch {
    window.prompt(label, text);
  }
}

// The current value of a CSS variable of ComfyUI's colour palette.
export function colour(name, fallback) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || fallback;
}
