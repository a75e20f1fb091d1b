// The texts of the button that unfolds settings, in the frontend's language.

import { language } from "../panel/words.js";

const TEXTS = {
  en: { more: (count) => `▸ ${count} more settings`, less: "▾ fewer settings" },
  vi: { more: (count) => `▸ thêm ${count} thiết lập`, less: "▾ bớt thiết lập" },
  ja: { more: (count) => `▸ その他の設定（${count}）`, less: "▾ 設定を減らす" },
  zh: { more: (count) => `▸ 更多设置（${count}）`, less: "▾ 收起设置" },
};

export function foldWords() {
  return TEXTS[language()];
}
