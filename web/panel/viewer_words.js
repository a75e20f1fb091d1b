// The texts of the enlarged validation images, in the frontend's language.

import { language } from "./words.js";

const TEXTS = {
  en: {
    title: "Validation images", left: "Epoch on the left", right: "Epoch on the right", close: "Close",
    use: "Use this LoRA", useTip: "Puts Load LoRA with the LoRA of this epoch beside the node", used: "Load LoRA was added beside the node.",
    save: "Save among LoRAs", saveTip: "Copies the LoRA of this epoch to models/loras", saved: (name) => `Saved as ${name}.`,
    notSaved: (message) => `Not saved: ${message}`, base: "This image was made before training.",
    missing: "No LoRA was saved at this epoch. Set “save every (steps)” before training.",
  },
  vi: {
    title: "Ảnh thử", left: "Epoch bên trái", right: "Epoch bên phải", close: "Đóng",
    use: "Dùng LoRA này", useTip: "Đặt nút Nạp LoRA với LoRA của epoch này bên cạnh nút", used: "Đã thêm nút Nạp LoRA bên cạnh.",
    save: "Lưu vào các LoRA", saveTip: "Chép LoRA của epoch này vào models/loras", saved: (name) => `Đã lưu thành ${name}.`,
    notSaved: (message) => `Chưa lưu: ${message}`, base: "Ảnh này được tạo trước khi huấn luyện.",
    missing: "Epoch này không có LoRA nào được lưu. Hãy đặt khoảng lưu (bước) trước khi huấn luyện.",
  },
  ja: {
    title: "テスト画像", left: "左のエポック", right: "右のエポック", close: "閉じる",
    use: "このLoRAを使う", useTip: "このエポックのLoRAを読み込むノードを横に置きます", used: "LoRAを読み込むノードを横に置きました。",
    save: "LoRAに保存", saveTip: "このエポックのLoRAをmodels/lorasにコピーします", saved: (name) => `${name} として保存しました。`,
    notSaved: (message) => `保存できませんでした：${message}`, base: "学習前の画像です。",
    missing: "このエポックのLoRAは保存されていません。学習前に保存間隔（ステップ）を設定してください。",
  },
  zh: {
    title: "测试图", left: "左侧周期", right: "右侧周期", close: "关闭",
    use: "使用此 LoRA", useTip: "在节点旁放置加载该周期 LoRA 的节点", used: "已在旁边放置加载 LoRA 的节点。",
    save: "保存到 LoRA", saveTip: "把该周期的 LoRA 复制到 models/loras", saved: (name) => `已保存为 ${name}。`,
    notSaved: (message) => `未保存：${message}`, base: "这是训练前的图。",
    missing: "该周期没有保存 LoRA。请在训练前设置保存间隔（步）。",
  },
};

export function viewerWords() {
  return TEXTS[language()];
}
