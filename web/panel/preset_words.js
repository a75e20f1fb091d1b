// The notice after choosing a preset, in the frontend's language.

import { language } from "./words.js";

const TEXTS = {
  en: { filled: (count) => `Values filled in: ${count}.`, also: (list) => `Also set, although no connected node shows it: ${list}.` },
  vi: { filled: (count) => `Số giá trị đã điền: ${count}.`, also: (list) => `Cũng được đặt, dù không có nút nào hiển thị: ${list}.` },
  ja: { filled: (count) => `${count}個の値を入れました。`, also: (list) => `表示するノードはありませんが、これも設定されます：${list}` },
  zh: { filled: (count) => `已填入 ${count} 个值。`, also: (list) => `另外还设置了（画布上没有节点显示）：${list}。` },
};

export function presetWords() {
  return TEXTS[language()];
}
