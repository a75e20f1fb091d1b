// The texts of a node's report, in the frontend's language.

import { language } from "../panel/words.js";

const TEXTS = {
  en: { label: "Report", empty: "The report appears here after a run." },
  vi: { label: "Báo cáo", empty: "Báo cáo sẽ hiện ở đây sau khi chạy." },
  ja: { label: "レポート", empty: "実行後、ここにレポートが表示されます。" },
  zh: { label: "报告", empty: "运行后，这里会显示报告。" },
};

export function reportWords() {
  return TEXTS[language()];
}
