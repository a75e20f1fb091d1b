// Trigger words as prompts have them. ComfyUI reads bare round brackets as emphasis. The same rules as trainer/core/prompt_syntax.py.

const EMPHASIS = /\([^()]*:\s*[+-]?(\d+\.?\d*|\.\d+)\s*\)/;

// `word` with backslashes before its brackets, unless it is written for a prompt already.
export function forPrompt(word) {
  return /\\[()]/.test(word) || EMPHASIS.test(word) ? word : word.replace(/[()]/g, "\\$&");
}

// Whether `word` stands in `text`, not as part of a longer word; case and backslashes do not count.
export function hasWord(text, word) {
  const wanted = plain(word).replace(/[.*+?^${}()|[\]\\/]/g, "\\$&");
  return new RegExp(`(?<![\\p{L}\\p{N}_])${wanted}(?![\\p{L}\\p{N}_])`, "iu").test(plain(text));
}

// `text` with those of `words` in front that it does not have yet.
export function withWords(text, words) {
  const missing = words.filter((word, index) => !hasWord(text, word) && !words.slice(0, index).some((other) => hasWord(other, word)));
  return [...missing.map(forPrompt), ...(text.trim() ? [text] : [])].join(", ");
}

function plain(text) {
  return text.replace(/\\([()])/g, "$1");
}
