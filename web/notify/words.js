// The texts of notifications, in the frontend's language.

import { language } from "../panel/words.js";

const TEXTS = {
  en: {
    off: "Notify me", on: "Notifies", tip: "Shows a notification of your browser when a training ends or fails while this page is in the background",
    blocked: "Your browser blocks notifications of this page", ended: "Training finished", failed: "Training failed",
  },
  vi: {
    off: "Báo cho tôi", on: "Sẽ báo", tip: "Trình duyệt sẽ báo khi huấn luyện xong hoặc lỗi trong lúc trang này ở nền",
    blocked: "Trình duyệt đang chặn thông báo của trang này", ended: "Huấn luyện xong", failed: "Huấn luyện lỗi",
  },
  ja: {
    off: "通知する", on: "通知します", tip: "このページが背面にあるとき、学習の終了や失敗をブラウザーの通知で知らせます",
    blocked: "ブラウザーがこのページの通知をブロックしています", ended: "学習が終わりました", failed: "学習に失敗しました",
  },
  zh: {
    off: "通知我", on: "会通知", tip: "当此页面在后台时，训练结束或失败会显示浏览器通知",
    blocked: "浏览器阻止了此页面的通知", ended: "训练完成", failed: "训练失败",
  },
};

export function notifyWords() {
  return TEXTS[language()];
}
