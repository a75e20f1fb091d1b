// Small helpers for building and styling the panel.

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

// A stylesheet, once.
export function loadStyle(url) {
  const href = url.href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return;
  document.head.append(element("link", { rel: "stylesheet", href }));
}

// Copy text and say so on the button for a moment. Browsers refuse the clipboard to plain http pages on other machines: then select it.
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

// The value of a CSS variable of ComfyUI's colour palette, as it is now.
export function colour(name, fallback) {
  return getComputedStyle(document.documentElement).getPropertyValue(name).trim() || fallback;
}
