// The texts of LoRA cards and lists, in the frontend's language.

import { language } from "../panel/words.js";

const TEXTS = {
  en: {
    choose: "Choose a LoRA to see its card.", afterTraining: "The card of the connected LoRA appears after the graph has run.",
    missing: (name) => `“${name}” is not in ComfyUI's list of LoRAs.`,
    rank: (rank, alpha) => `rank ${rank}${alpha ? `, alpha ${alpha}` : ""}`, trainedOn: "trained on", strength: "suggested strength",
    triggers: "Trigger words", frequent: "Frequent tags", noTriggers: "The file lists no trigger words.", all: "all",
    copyTip: "Copy", copied: "Copied", insertTip: "Insert into the prompt", inserted: (title) => `Inserted into “${title}”`,
    noTarget: "No prompt found. Select the node with the prompt, or connect one.",
    trainingTitle: "How it was trained", fileTitle: "About the file", layers: "layers", file: "file", author: "author", licence: "licence",
    training: {
      steps: "steps", epochs: "epochs", images: "images", resolution: "resolution", lr: "learning rate", text_encoder_lr: "text encoder learning rate",
      batch: "batch size", optimizer: "optimizer", schedule: "schedule", clip_skip: "CLIP skip", seed: "seed", date: "date",
    },
    list: "LoRAs", add: "Add LoRA", none: "No LoRA yet.", broken: "This list cannot be read. Adding a LoRA starts a new one.", chooseOne: "choose a LoRA",
    allOn: "All on or off", on: "On or off", count: (on, all) => (all ? `${on} of ${all} on` : ""),
    apart: "text strength", apartTip: "Set the strength for the text encoder separately", modelStrength: "Strength for the model", clipStrength: "Strength for the text encoder",
    card: "Show the card", up: "Move up", down: "Move down", remove: "Remove", search: "Search", nothing: "Nothing found.", noLoras: "No LoRA in models/loras.",
  },
  vi: {
    choose: "Chọn một LoRA để xem thẻ của nó.", afterTraining: "Thẻ của LoRA được nối sẽ hiện sau khi chạy đồ thị.",
    missing: (name) => `“${name}” không có trong danh sách LoRA của ComfyUI.`,
    rank: (rank, alpha) => `rank ${rank}${alpha ? `, alpha ${alpha}` : ""}`, trainedOn: "huấn luyện trên", strength: "độ mạnh gợi ý",
    triggers: "Từ kích hoạt", frequent: "Thẻ hay gặp", noTriggers: "Tệp không nêu từ kích hoạt nào.", all: "tất cả",
    copyTip: "Chép", copied: "Đã chép", insertTip: "Chèn vào câu lệnh", inserted: (title) => `Đã chèn vào “${title}”`,
    noTarget: "Không thấy câu lệnh: hãy chọn nút có văn bản, hoặc nối một nút.",
    trainingTitle: "Cách huấn luyện", fileTitle: "Về tệp này", layers: "số lớp", file: "tệp", author: "tác giả", licence: "giấy phép",
    training: {
      steps: "số bước", epochs: "epoch", images: "số ảnh", resolution: "độ phân giải", lr: "tốc độ học", text_encoder_lr: "tốc độ học (văn bản)",
      batch: "cỡ lô", optimizer: "bộ tối ưu", schedule: "lịch học", clip_skip: "CLIP skip", seed: "hạt giống", date: "ngày",
    },
    list: "Các LoRA", add: "Thêm LoRA", none: "Chưa có LoRA nào.", broken: "Không đọc được danh sách này. Thêm LoRA sẽ bắt đầu danh sách mới.", chooseOne: "chọn một LoRA",
    allOn: "Bật hoặc tắt tất cả", on: "Bật hoặc tắt", count: (on, all) => (all ? `bật ${on}/${all}` : ""),
    apart: "độ mạnh văn bản", apartTip: "Độ mạnh riêng cho bộ mã hóa văn bản", modelStrength: "Độ mạnh cho mô hình", clipStrength: "Độ mạnh cho bộ mã hóa văn bản",
    card: "Xem thẻ", up: "Chuyển lên", down: "Chuyển xuống", remove: "Bỏ", search: "Tìm", nothing: "Không tìm thấy.", noLoras: "Không có LoRA nào trong models/loras.",
  },
  ja: {
    choose: "LoRAを選ぶと、ここにカードが表示されます。", afterTraining: "接続されたLoRAのカードは、実行後に表示されます。",
    missing: (name) => `「${name}」はComfyUIのLoRA一覧にありません。`,
    rank: (rank, alpha) => `ランク ${rank}${alpha ? `、alpha ${alpha}` : ""}`, trainedOn: "学習元：", strength: "推奨の強さ",
    triggers: "トリガーワード", frequent: "よく使われたタグ", noTriggers: "このファイルにトリガーワードの記載はありません。", all: "すべて",
    copyTip: "コピー", copied: "コピーしました", insertTip: "プロンプトに挿入", inserted: (title) => `「${title}」に挿入しました`,
    noTarget: "プロンプトが見つかりません。テキストのあるノードを選択するか、接続してください。",
    trainingTitle: "学習の設定", fileTitle: "ファイルについて", layers: "層の数", file: "ファイル", author: "作者", licence: "ライセンス",
    training: {
      steps: "ステップ数", epochs: "エポック数", images: "画像数", resolution: "解像度", lr: "学習率", text_encoder_lr: "テキストエンコーダーの学習率",
      batch: "バッチサイズ", optimizer: "オプティマイザー", schedule: "スケジュール", clip_skip: "CLIP skip", seed: "シード", date: "日付",
    },
    list: "LoRAの一覧", add: "LoRAを追加", none: "LoRAはまだありません。", broken: "この一覧は読めません。LoRAを追加すると新しい一覧になります。", chooseOne: "LoRAを選ぶ",
    allOn: "すべてオン・オフ", on: "オン・オフ", count: (on, all) => (all ? `${all}個中${on}個がオン` : ""),
    apart: "テキストの強さ", apartTip: "テキストエンコーダーの強さを別に設定します", modelStrength: "モデルの強さ", clipStrength: "テキストエンコーダーの強さ",
    card: "カードを表示", up: "上へ", down: "下へ", remove: "削除", search: "検索", nothing: "見つかりません。", noLoras: "models/loras にLoRAがありません。",
  },
  zh: {
    choose: "选择一个 LoRA，即可在此查看它的卡片。", afterTraining: "运行后，这里会显示所连接 LoRA 的卡片。",
    missing: (name) => `“${name}”不在 ComfyUI 的 LoRA 列表中。`,
    rank: (rank, alpha) => `秩 ${rank}${alpha ? `，alpha ${alpha}` : ""}`, trainedOn: "训练底模：", strength: "建议强度",
    triggers: "触发词", frequent: "常见标签", noTriggers: "文件没有写明触发词。", all: "全部",
    copyTip: "复制", copied: "已复制", insertTip: "插入提示词", inserted: (title) => `已插入“${title}”`,
    noTarget: "找不到提示词：请选中带文本的节点，或连接一个。",
    trainingTitle: "训练设置", fileTitle: "文件信息", layers: "层数", file: "文件", author: "作者", licence: "许可",
    training: {
      steps: "步数", epochs: "周期数", images: "图片数", resolution: "分辨率", lr: "学习率", text_encoder_lr: "文本编码器学习率",
      batch: "批大小", optimizer: "优化器", schedule: "调度", clip_skip: "CLIP skip", seed: "种子", date: "日期",
    },
    list: "LoRA 列表", add: "添加 LoRA", none: "还没有 LoRA。", broken: "无法读取此列表。添加 LoRA 会新建列表。", chooseOne: "选择 LoRA",
    allOn: "全部开或关", on: "开或关", count: (on, all) => (all ? `已开 ${on}/${all}` : ""),
    apart: "文本强度", apartTip: "为文本编码器单独设置强度", modelStrength: "对模型的强度", clipStrength: "对文本编码器的强度",
    card: "查看卡片", up: "上移", down: "下移", remove: "移除", search: "搜索", nothing: "没有找到。", noLoras: "models/loras 中没有 LoRA。",
  },
};

export function words() {
  return TEXTS[language()];
}
