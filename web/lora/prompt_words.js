// Trigger words in prompts. ComfyUI reads unescaped round brackets as emphasis. Same rules as trainer/core/prompt_syntax.py.

const EMPHASIS = /\([^()]*:\s*[+-]?(\d+\.?\d*|\.\d+)\s*\)/;

// `word` with its brackets escaped, unless it already contains escapes or emphasis.
export function forPrompt(word) {
  return /\\[()]/.test(word) || EMPHASIS.test(word) ? word : word.replace(/[()]/g, "\\$&");
}

// Whether `text` contains `word` as a whole word, ignoring case and escapes.
export function hasWord(text, word) {
  const wanted = plain(word).replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}_])${wanted}(?![\\p{L}\\p{N}_])`, "iu").test(plain(text));
}

// `text` preceded by those of `words` that it lacks.
export function withWords(text, words) {
  const missing = words.filter((word, index) => !hasWord(text, word) && !words.slice(0, index).some((other) => hasWord(other, word)));
  return [...missing.map(forPrompt), ...(text.trim() ? [text] : [])].join(", ");
}

function plain(text) {
  return text.replace(/\\([()])/g, "$1");
}
