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

// Add a DOM element to a node as a widget without a value: it is not saved in the workflow or the prompt, and not listed in the
// properties panel, which would take the element out of the node.
export function addDisplay(node, name, label, root, minHeight) {
  const widget = node.addDOMWidget(name, name, root, {
    serialize: false,
    hideOnZoom: false,
    hideInPanel: true,
    getValue: () => "",
    setValue: () => {},
    getMinHeight: minHeight,
  });
  widget.serialize = false;
  widget.label = label;
  keepWidth(widget);
  return widget;
}

// The properties panel of some frontends sets the width of a widget that it lists, and the node then keeps that width.
export function keepWidth(widget, width = () => undefined) {
  Object.defineProperty(widget, "width", { get: width, set: () => {}, configurable: true });
}

// Load a stylesheet, once.
export function loadStyle(url) {
  const href = url.href;
  if ([...document.styleSheets].some((sheet) => sheet.href === href)) return;
  document.head.append(element("link", { rel: "stylesheet", href }));
}

// Keep pointer events, and keys that are shortcuts of the canvas, from the canvas below. The wheel scrolls the part under it that overflows.
export function keepFromCanvas(root) {
  for (const name of ["pointerdown", "mousedown", "dblclick"]) root.addEventListener(name, (event) => event.stopPropagation());
  root.addEventListener("keydown", (event) => {
    if (!event.ctrlKey && !event.metaKey && event.key !== "Escape") event.stopPropagation();
  });
  root.addEventListener("wheel", (event) => {
    for (let part = event.target; part && root.contains(part); part = part.parentElement) {
      if (part.scrollHeight > part.clientHeight && getComputedStyle(part).overflowY !== "hidden") return event.stopPropagation();
    }
  });
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
