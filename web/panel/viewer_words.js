// The texts of the enlarged validation images, in the frontend's language.

import { language } from "./words.js";

const TEXTS = {
  en: {
    title: "Validation images", left: "Epoch on the left", right: "Epoch on the right", close: "Close",
    use: "Use this LoRA", useTip: "Puts Load LoRA with the LoRA of this epoch beside the node", used: "Load LoRA was added beside the node.",
    save: "Save among LoRAs", saveTip: "Copies the LoRA of this epoch to models/loras", saved: (name) => `Saved as ${name}.`,
    notSaved: (message) => `Not saved: ${message}`, base: "This image was made before training.",
    missing: "The LoRA of this epoch is not there: it was deleted, or an earlier version of the pack did not save it.",
    remove: "Delete state", removeTip: "Deletes the state and the LoRA that were saved at this epoch; press it twice",
    sure: (epoch) => `Press again to delete the LoRA of epoch ${epoch}, and its state if there is one. Training can then no longer continue from there.`,
    removed: (epoch, size) => `Deleted epoch ${epoch}: ${size} freed. The images stay.`, notRemoved: (message) => `Not deleted: ${message}`,
    live: "Stop the training before you delete a state.",
  },
  vi: {
    title: "Ảnh thử", left: "Epoch bên trái", right: "Epoch bên phải", close: "Đóng",
    use: "Dùng LoRA này", useTip: "Đặt nút Nạp LoRA với LoRA của epoch này bên cạnh nút", used: "Đã thêm nút Nạp LoRA bên cạnh.",
    save: "Lưu vào các LoRA", saveTip: "Chép LoRA của epoch này vào models/loras", saved: (name) => `Đã lưu thành ${name}.`,
    notSaved: (message) => `Chưa lưu: ${message}`, base: "Ảnh này được tạo trước khi huấn luyện.",
    missing: "Không có LoRA của epoch này: đã bị xóa, hoặc phiên bản trước của gói không lưu.",
    remove: "Xóa trạng thái", removeTip: "Xóa trạng thái và LoRA đã lưu ở epoch này; nhấn hai lần",
    sure: (epoch) => `Nhấn lần nữa để xóa LoRA của epoch ${epoch}, cùng trạng thái nếu có. Sau đó không thể huấn luyện tiếp từ đó.`,
    removed: (epoch, size) => `Đã xóa epoch ${epoch}: giải phóng ${size}. Ảnh vẫn còn.`, notRemoved: (message) => `Chưa xóa: ${message}`,
    live: "Hãy dừng huấn luyện trước khi xóa trạng thái.",
  },
  ja: {
    title: "テスト画像", left: "左のエポック", right: "右のエポック", close: "閉じる",
    use: "このLoRAを使う", useTip: "このエポックのLoRAを読み込むノードを横に置きます", used: "LoRAを読み込むノードを横に置きました。",
    save: "LoRAに保存", saveTip: "このエポックのLoRAをmodels/lorasにコピーします", saved: (name) => `${name} として保存しました。`,
    notSaved: (message) => `保存できませんでした：${message}`, base: "学習前の画像です。",
    missing: "このエポックのLoRAはありません。削除されたか、以前のバージョンでは保存されませんでした。",
    remove: "状態を削除", removeTip: "このエポックで保存された状態とLoRAを削除します（2回押します）",
    sure: (epoch) => `もう一度押すと、エポック ${epoch} のLoRAと、あれば状態を削除します。そこから学習を続けられなくなります。`,
    removed: (epoch, size) => `エポック ${epoch} を削除し、${size} を空けました。画像は残ります。`, notRemoved: (message) => `削除できませんでした：${message}`,
    live: "状態を削除する前に学習を止めてください。",
  },
  zh: {
    title: "测试图", left: "左侧周期", right: "右侧周期", close: "关闭",
    use: "使用此 LoRA", useTip: "在节点旁放置加载该周期 LoRA 的节点", used: "已在旁边放置加载 LoRA 的节点。",
    save: "保存到 LoRA", saveTip: "把该周期的 LoRA 复制到 models/loras", saved: (name) => `已保存为 ${name}。`,
    notSaved: (message) => `未保存：${message}`, base: "这是训练前的图。",
    missing: "没有该周期的 LoRA：已被删除，或旧版本没有保存。",
    remove: "删除状态", removeTip: "删除该周期保存的状态和 LoRA（按两次）",
    sure: (epoch) => `再按一次将删除第 ${epoch} 周期的 LoRA，以及状态（如有），之后无法再从那里继续训练。`,
    removed: (epoch, size) => `已删除第 ${epoch} 周期，释放 ${size}。图片会保留。`, notRemoved: (message) => `未删除：${message}`,
    live: "请先停止训练再删除状态。",
  },
};

export function viewerWords() {
  return TEXTS[language()];
}
