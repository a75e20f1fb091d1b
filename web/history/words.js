// The texts of the history of trainings, in the frontend's language.

import { language } from "../panel/words.js";

const plural = (count, word) => `${count} ${word}${count === 1 ? "" : "s"}`; // in English

const TEXTS = {
  en: {
    tab: "LoRA runs", tabTip: "LoRA runs: past and waiting trainings", refresh: "Refresh", total: (size) => `${size} on disk`,
    waiting: "Waiting in the queue", runs: "Trainings", none: "No trainings yet. Runs of Train LoRA appear here.",
    unread: "The list could not be read. Is the server running?", epochs: (count) => plural(count, "epoch"),
    steps: (count) => plural(count, "step"),
    states: {
      finished: ({ step }) => `finished · ${plural(step, "step")}`, running: ({ step, steps }) => (steps ? `training · step ${step} of ${steps}` : "training"),
      stopped: ({ step, steps }) => `stopped at step ${step} of ${steps}`, failed: ({ step, steps }) => `failed at step ${step} of ${steps}`,
    },
    next: {
      starts: () => "starts from the beginning", resumes: ({ step, steps }) => `resumes at step ${step} of ${steps}`,
      continues: ({ step, steps }) => `continues from step ${step} of ${steps}`, finished: () => "uses the finished LoRA",
    },
    loss: (value) => `loss ${value}`, before: "before training", epoch: (number) => `Epoch ${number}`, step: (number) => `step ${number}`,
    settings: "Open settings", settingsTip: "Puts the settings of this run into the selected Train LoRA node, or into a new one",
    remove: "Delete", removeTip: "Deletes the run folder", cancel: "Cancel", saved: "Saved epochs and steps",
    notSaved: "Nothing is saved between start and end.",
    removeStep: (step) => `Delete what is saved at step ${step}`, busy: "Stop the training before you delete it.",
    sure: ({ states, images, size }) =>
      `Delete this run? Its folder goes, with the log, ${plural(states, "saved step")} and ${plural(images, "validation image")}: ${size}.`,
    withLora: (name) => `Also delete ${name} from models/loras`, noLora: "No LoRA of this run is in models/loras.",
    keptLora: (name) => `${name} in models/loras stays unless you tick the box.`,
    sureStep: (step, lora, state) => (state
      ? `Delete the saved state${lora ? " and the LoRA" : ""} of step ${step}? Training can no longer continue from there. The validation images stay.`
      : `Delete the LoRA of step ${step}? The validation images stay.`),
    kept: ({ lora, state }) => (state ? `state${lora ? " and LoRA" : ""}` : "LoRA"),
    removed: ({ name, size, lora }) => `Deleted ${name}: ${size} freed${lora ? `, and ${lora} from models/loras` : ""}.`,
    removedStep: (step, size) => `Deleted step ${step}: ${size} freed.`,
    failed: (message) => `Not done: ${message}`,
    compare: "Compare", compareRun: (name) => `Compare ${name} with another run`, chooseOther: "Tick another run to compare.", clear: "Clear",
    compareTitle: "Two runs compared", close: "Close", chart: "Chart of the smoothed loss of both runs", prompt: "Prompt",
    left: "Epoch of the first run", right: "Epoch of the second run",
    noImage: "no image", held: "held-out images", differ: "Settings that differ", same: "All settings are the same.",
    unknownSettings: "The settings of a run could not be read.",
    facts: { state: "state", loss: "loss", validation: "validation loss", base: "base model", dataset: "dataset", size: "size" },
    opened: (name) => `The settings of ${name} are in Train LoRA.`, added: (name) => `Train LoRA was added with the settings of ${name}.`,
    several: "There are several Train LoRA nodes: select one first.",
    wasDataset: (name) => `It was trained on the dataset ${name}: connect that one.`, notSet: "Not set:",
    reasons: { missing: "not among the files here", value: "beyond the limits of the widget", "no widget": "on no node", linked: "the input is connected" },
  },
  vi: {
    tab: "Lượt LoRA", tabTip: "Lượt LoRA: các lần huấn luyện đã qua và đang chờ", refresh: "Làm mới", total: (size) => `${size} trên đĩa`,
    waiting: "Đang chờ trong hàng đợi", runs: "Các lần huấn luyện", none: "Chưa có lần huấn luyện nào. Các lần chạy Huấn luyện LoRA sẽ hiện ở đây.",
    unread: "Không đọc được danh sách. Máy chủ có đang chạy không?", epochs: (count) => `${count} epoch`, steps: (count) => `${count} bước`,
    states: {
      finished: ({ step }) => `đã xong · ${step} bước`,
      running: ({ step, steps }) => (steps ? `đang huấn luyện · bước ${step}/${steps}` : "đang huấn luyện"),
      stopped: ({ step, steps }) => `dừng ở bước ${step}/${steps}`, failed: ({ step, steps }) => `lỗi ở bước ${step}/${steps}`,
    },
    next: {
      starts: () => "bắt đầu từ đầu", resumes: ({ step, steps }) => `tiếp tục ở bước ${step}/${steps}`,
      continues: ({ step, steps }) => `huấn luyện tiếp từ bước ${step}/${steps}`, finished: () => "dùng LoRA đã xong",
    },
    loss: (value) => `loss ${value}`, before: "trước khi huấn luyện", epoch: (number) => `Epoch ${number}`, step: (number) => `bước ${number}`,
    settings: "Mở thiết lập", settingsTip: "Đặt thiết lập của lần chạy này vào nút Huấn luyện LoRA đang chọn, hoặc vào một nút mới",
    remove: "Xóa", removeTip: "Xóa thư mục của lần chạy", cancel: "Hủy", saved: "Các epoch và bước đã lưu",
    notSaved: "Không có gì được lưu giữa lúc bắt đầu và kết thúc.",
    removeStep: (step) => `Xóa những gì đã lưu ở bước ${step}`, busy: "Hãy dừng huấn luyện trước khi xóa.",
    sure: ({ states, images, size }) => `Xóa lần chạy này? Thư mục của nó sẽ mất, cùng ${states} bước đã lưu, ${images} ảnh thử và nhật ký: ${size}.`,
    withLora: (name) => `Xóa cả ${name} khỏi models/loras`, noLora: "Không có LoRA nào của lần chạy này trong models/loras.",
    keptLora: (name) => `${name} trong models/loras vẫn còn, trừ khi bạn đánh dấu ô.`,
    sureStep: (step, lora, state) => (state
      ? `Xóa trạng thái đã lưu${lora ? " và LoRA" : ""} của bước ${step}? Không thể huấn luyện tiếp từ đó nữa. Ảnh thử vẫn còn.`
      : `Xóa LoRA của bước ${step}? Ảnh thử vẫn còn.`),
    kept: ({ lora, state }) => (state ? `trạng thái${lora ? " và LoRA" : ""}` : "LoRA"),
    removed: ({ name, size, lora }) => `Đã xóa ${name}: giải phóng ${size}${lora ? `, và ${lora} khỏi models/loras` : ""}.`,
    removedStep: (step, size) => `Đã xóa bước ${step}: giải phóng ${size}.`,
    failed: (message) => `Chưa làm được: ${message}`,
    compare: "So sánh", compareRun: (name) => `So sánh ${name} với lần chạy khác`, chooseOther: "Đánh dấu một lần chạy khác để so sánh.",
    clear: "Bỏ chọn",
    compareTitle: "So sánh hai lần chạy", close: "Đóng", chart: "Biểu đồ loss làm mượt của hai lần chạy", prompt: "Prompt",
    left: "Epoch của lần chạy thứ nhất", right: "Epoch của lần chạy thứ hai",
    noImage: "không có ảnh", held: "ảnh để riêng", differ: "Thiết lập khác nhau", same: "Mọi thiết lập đều giống nhau.",
    unknownSettings: "Không đọc được thiết lập của một lần chạy.",
    facts: { state: "trạng thái", loss: "loss", validation: "loss kiểm định", base: "mô hình gốc", dataset: "bộ dữ liệu", size: "dung lượng" },
    opened: (name) => `Thiết lập của ${name} đã ở trong nút Huấn luyện LoRA.`,
    added: (name) => `Đã thêm nút Huấn luyện LoRA với thiết lập của ${name}.`,
    several: "Có nhiều nút Huấn luyện LoRA: hãy chọn một nút trước.",
    wasDataset: (name) => `Nó được huấn luyện trên bộ dữ liệu ${name}: hãy nối tập đó.`, notSet: "Chưa đặt:",
    reasons: { missing: "không có trong các tệp ở đây", value: "vượt giới hạn của ô", "no widget": "không có trên nút nào", linked: "đầu vào đã được nối" },
  },
  ja: {
    tab: "LoRA学習履歴", tabTip: "LoRA学習履歴：これまでの学習と待機中の学習", refresh: "更新", total: (size) => `ディスク ${size}`,
    waiting: "キューで待機中", runs: "学習", none: "まだ学習がありません。LoRA学習を実行するとここに表示されます。",
    unread: "一覧を読み込めませんでした。サーバーは動いていますか？", epochs: (count) => `${count}エポック`, steps: (count) => `${count}ステップ`,
    states: {
      finished: ({ step }) => `完了 · ${step}ステップ`, running: ({ step, steps }) => (steps ? `学習中 · ステップ ${step}/${steps}` : "学習中"),
      stopped: ({ step, steps }) => `ステップ ${step}/${steps} で停止`, failed: ({ step, steps }) => `ステップ ${step}/${steps} で失敗`,
    },
    next: {
      starts: () => "最初から学習します", resumes: ({ step, steps }) => `ステップ ${step}/${steps} から再開します`,
      continues: ({ step, steps }) => `ステップ ${step}/${steps} から続けて学習します`, finished: () => "完成済みのLoRAを使います",
    },
    loss: (value) => `損失 ${value}`, before: "学習前", epoch: (number) => `エポック ${number}`, step: (number) => `ステップ ${number}`,
    settings: "設定を開く", settingsTip: "この学習の設定を、選択中のLoRA学習ノードか新しいノードに入れます",
    remove: "削除", removeTip: "学習フォルダーを削除します", cancel: "キャンセル", saved: "保存されたエポックとステップ", notSaved: "途中で保存されたものはありません。",
    removeStep: (step) => `ステップ ${step} の保存データを削除`, busy: "削除する前に学習を止めてください。",
    sure: ({ states, images, size }) => `この学習を削除しますか？保存されたステップ ${states}件、テスト画像 ${images}枚、ログを含むフォルダー（${size}）がなくなります。`,
    withLora: (name) => `models/loras の ${name} も削除する`, noLora: "この学習のLoRAは models/loras にありません。",
    keptLora: (name) => `チェックしなければ、models/loras の ${name} は残ります。`,
    sureStep: (step, lora, state) => (state
      ? `ステップ ${step} の保存された状態${lora ? "とLoRA" : ""}を削除しますか？そこから学習を続けられなくなります。テスト画像は残ります。`
      : `ステップ ${step} のLoRAを削除しますか？テスト画像は残ります。`),
    kept: ({ lora, state }) => (state ? `状態${lora ? "とLoRA" : ""}` : "LoRA"),
    removed: ({ name, size, lora }) => `${name} を削除し、${size} を空けました${lora ? `（models/loras の ${lora} も削除）` : ""}。`,
    removedStep: (step, size) => `ステップ ${step} を削除し、${size} を空けました。`,
    failed: (message) => `できませんでした：${message}`,
    compare: "比較", compareRun: (name) => `${name} を別の学習と比較`, chooseOther: "比較する学習をもう1つ選んでください。", clear: "選択を解除",
    compareTitle: "2つの学習の比較", close: "閉じる", chart: "両方の学習の平滑化した損失のグラフ", prompt: "プロンプト", left: "1つ目の学習のエポック", right: "2つ目の学習のエポック",
    noImage: "画像なし", held: "検証画像", differ: "異なる設定", same: "設定はすべて同じです。", unknownSettings: "学習の設定を読み込めませんでした。",
    facts: { state: "状態", loss: "損失", validation: "検証損失", base: "ベースモデル", dataset: "データセット", size: "サイズ" },
    opened: (name) => `${name} の設定をLoRA学習ノードに入れました。`, added: (name) => `${name} の設定でLoRA学習ノードを追加しました。`,
    several: "LoRA学習ノードが複数あります。先に1つ選択してください。",
    wasDataset: (name) => `データセット ${name} で学習されました。それを接続してください。`, notSet: "設定されなかったもの：",
    reasons: { missing: "ここにないファイル", value: "ウィジェットの範囲外", "no widget": "どのノードにもない設定", linked: "入力が接続済み" },
  },
  zh: {
    tab: "LoRA 训练记录", tabTip: "LoRA 训练记录：以往和等待中的训练", refresh: "刷新", total: (size) => `占用磁盘 ${size}`,
    waiting: "队列中等待", runs: "训练", none: "还没有训练。运行“训练 LoRA”后会显示在这里。",
    unread: "无法读取列表。服务器是否在运行？", epochs: (count) => `${count} 个周期`, steps: (count) => `${count} 步`,
    states: {
      finished: ({ step }) => `已完成 · ${step} 步`, running: ({ step, steps }) => (steps ? `训练中 · 第 ${step}/${steps} 步` : "训练中"),
      stopped: ({ step, steps }) => `停止于第 ${step}/${steps} 步`, failed: ({ step, steps }) => `失败于第 ${step}/${steps} 步`,
    },
    next: {
      starts: () => "从头开始", resumes: ({ step, steps }) => `从第 ${step}/${steps} 步恢复`,
      continues: ({ step, steps }) => `从第 ${step}/${steps} 步继续训练`, finished: () => "使用已完成的 LoRA",
    },
    loss: (value) => `损失 ${value}`, before: "训练前", epoch: (number) => `第 ${number} 周期`, step: (number) => `第 ${number} 步`,
    settings: "打开设置", settingsTip: "把这次训练的设置放入选中的“训练 LoRA”节点，或放入新节点",
    remove: "删除", removeTip: "删除训练文件夹", cancel: "取消", saved: "已保存的周期和步", notSaved: "中途没有保存任何内容。",
    removeStep: (step) => `删除第 ${step} 步保存的内容`, busy: "请先停止训练再删除。",
    sure: ({ states, images, size }) => `删除这次训练吗？它的文件夹将被删除，包括 ${states} 个已保存的步、${images} 张测试图和日志：${size}。`,
    withLora: (name) => `同时从 models/loras 删除 ${name}`, noLora: "models/loras 中没有这次训练的 LoRA。", keptLora: (name) => `除非勾选，models/loras 中的 ${name} 会保留。`,
    sureStep: (step, lora, state) => (state
      ? `删除第 ${step} 步保存的状态${lora ? "和 LoRA" : ""}吗？将无法再从那里继续训练。测试图会保留。`
      : `删除第 ${step} 步的 LoRA 吗？测试图会保留。`),
    kept: ({ lora, state }) => (state ? `状态${lora ? "和 LoRA" : ""}` : "LoRA"),
    removed: ({ name, size, lora }) => `已删除 ${name}，释放 ${size}${lora ? `，并从 models/loras 删除了 ${lora}` : ""}。`,
    removedStep: (step, size) => `已删除第 ${step} 步，释放 ${size}。`,
    failed: (message) => `未完成：${message}`,
    compare: "比较", compareRun: (name) => `将 ${name} 与另一次训练比较`, chooseOther: "请再勾选一次训练进行比较。", clear: "清除选择",
    compareTitle: "两次训练的比较", close: "关闭", chart: "两次训练的平滑损失曲线", prompt: "提示词", left: "第一次训练的周期", right: "第二次训练的周期",
    noImage: "没有图片", held: "留出的图片", differ: "不同的设置", same: "所有设置都相同。", unknownSettings: "无法读取某次训练的设置。",
    facts: { state: "状态", loss: "损失", validation: "验证损失", base: "底模", dataset: "数据集", size: "大小" },
    opened: (name) => `${name} 的设置已放入“训练 LoRA”节点。`, added: (name) => `已添加带有 ${name} 设置的“训练 LoRA”节点。`,
    several: "有多个“训练 LoRA”节点：请先选中一个。",
    wasDataset: (name) => `它使用数据集 ${name} 训练：请连接该数据集。`, notSet: "未设置：",
    reasons: { missing: "不在此处的文件中", value: "超出控件的范围", "no widget": "没有节点显示它", linked: "输入已连接" },
  },
};

export function historyWords() {
  return TEXTS[language()];
}

// The name of a run for people: "my_style · 8 epochs · today 09:15".
export function title(run) {
  const texts = historyWords();
  const length = run.epochs ? texts.epochs(run.epochs) : run.steps ? texts.steps(run.steps) : "";
  return [run.name, length, run.started ? when(new Date(1000 * run.started)) : ""].filter(Boolean).join(" · ");
}

// "finished · 320 steps"
export function stateText(run) {
  return historyWords().states[run.state](run);
}

// "loss 0.0912 · 143 MB · anime.safetensors"
export function factsText({ loss, bytes, base }) {
  return [loss == null ? "" : historyWords().loss(loss.toFixed(4)), diskSize(bytes), base].filter(Boolean).join(" · ");
}

// Bytes as "3.2 MB" or "1.4 GB".
export function diskSize(bytes) {
  const [number, unit] = bytes < 1e6 ? [bytes / 1e3, "kilobyte"] : bytes < 1e9 ? [bytes / 1e6, "megabyte"] : [bytes / 1e9, "gigabyte"];
  return new Intl.NumberFormat(language(), { style: "unit", unit, maximumFractionDigits: number < 10 ? 1 : 0 }).format(number);
}

function when(time) {
  const midnight = (date) => new Date(date.getFullYear(), date.getMonth(), date.getDate());
  const now = new Date(), days = Math.round((midnight(now) - midnight(time)) / 86_400_000);
  const clock = { hour: "2-digit", minute: "2-digit" };
  if (days === 0 || days === 1) {
    const day = new Intl.RelativeTimeFormat(language(), { numeric: "auto" }).format(-days, "day");
    return `${day} ${time.toLocaleTimeString(language(), clock)}`;
  }
  const year = time.getFullYear() === now.getFullYear() ? {} : { year: "numeric" };
  return time.toLocaleString(language(), { ...year, month: "short", day: "numeric", ...clock });
}
