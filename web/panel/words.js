// The texts of the training panel, in the frontend's language.

import { app } from "../../../scripts/app.js";

const PHASES = {
  loading: { en: "loading the model", vi: "đang nạp mô hình", ja: "モデルを読み込み中", zh: "正在加载模型" },
  "caching latents": { en: "encoding images", vi: "đang mã hóa ảnh", ja: "画像を変換中", zh: "正在编码图片" },
  "caching prompts": { en: "encoding captions", vi: "đang mã hóa chú thích", ja: "キャプションを変換中", zh: "正在编码描述" },
  validating: { en: "computing the validation loss", vi: "đang kiểm định", ja: "検証中", zh: "正在验证" },
  training: { en: "training", vi: "đang huấn luyện", ja: "学習中", zh: "正在训练" },
  sampling: { en: "making validation images", vi: "đang vẽ ảnh thử", ja: "テスト画像を作成中", zh: "正在绘制测试图" },
  paused: { en: "paused", vi: "đang tạm dừng", ja: "一時停止中", zh: "已暂停" },
  saving: { en: "saving the state", vi: "đang lưu trạng thái", ja: "状態を保存中", zh: "正在保存状态" },
  "waiting for another process that trains the same run": {
    en: "waiting for another process that is training the same run", vi: "đang chờ một tiến trình khác huấn luyện cùng lượt này",
    ja: "同じ学習を行っている別のプロセスを待っています", zh: "正在等待另一个进程完成同一训练",
  },
  exporting: { en: "writing the LoRA", vi: "đang ghi LoRA", ja: "LoRAを書き出し中", zh: "正在写出 LoRA" },
};

const TEXTS = {
  en: {
    panel: "Training panel", epochs: "Epochs", prompts: "Validation prompts", progress: "Progress of the training", chart: "Chart of the loss", enlarge: "Enlarge", found: "found a finished run, ",
    notes: (count) => (count === 1 ? "1 note" : `${count} notes`),
    idle: "Loss, speed and validation images appear here during training.",
    starting: "starting", gone: "The folder of this run no longer exists.",
    loss: "loss", validation: "validation", rate: "learning rate", speed: "images/s", memory: "memory", left: "left", epoch: "epoch",
    before: "before training", smooth: "smoothed", single: "loss per step", held: "held-out images",
    stop: "Stop and keep", stopTip: "Stops the training and saves its state and a LoRA. Queue again to resume.", stopping: "stopping",
    path: "Copy folder", pathTip: "Copies the path of the run folder on the computer that runs ComfyUI",
    settings: "Copy settings", settingsTip: "Copies all values of this node", copied: "Copied", failed: "failed",
    step: (step, steps, epoch, epochs) => `step ${step} of ${steps} · epoch ${epoch}${epochs ? ` of ${epochs}` : ""}`,
    done: (steps, seconds, loss) => `done: ${steps} steps in ${duration(seconds)}, loss ${loss?.toFixed(4)}`,
    stopped: (step) => `stopped at step ${step}; queue again to resume`,
    nothingKept: "stopped before a state was saved; the next run starts from the beginning",
  },
  vi: {
    panel: "Bảng huấn luyện", epochs: "Các epoch", prompts: "Câu lệnh ảnh thử", progress: "Tiến độ huấn luyện", chart: "Biểu đồ loss", enlarge: "Phóng to", found: "tìm thấy lần chạy đã xong, ",
    notes: (count) => `${count} ghi chú`,
    idle: "Loss, tốc độ và ảnh thử sẽ hiện ở đây khi huấn luyện.",
    starting: "đang bắt đầu", gone: "Thư mục của lần chạy này không còn nữa.",
    loss: "loss", validation: "kiểm định", rate: "tốc độ học", speed: "ảnh/giây", memory: "bộ nhớ", left: "còn lại", epoch: "epoch",
    before: "trước khi huấn luyện", smooth: "làm mượt", single: "loss từng bước", held: "ảnh để riêng",
    stop: "Dừng và giữ lại", stopTip: "Dừng huấn luyện. Trạng thái và một LoRA được giữ: xếp hàng lại để tiếp tục.", stopping: "đang dừng",
    path: "Chép thư mục", pathTip: "Chép đường dẫn thư mục của lần chạy, trên máy đang chạy ComfyUI",
    settings: "Chép thiết lập", settingsTip: "Chép mọi giá trị của nút này", copied: "Đã chép", failed: "lỗi",
    step: (step, steps, epoch, epochs) => `bước ${step}/${steps} · epoch ${epoch}${epochs ? `/${epochs}` : ""}`,
    done: (steps, seconds, loss) => `xong: ${steps} bước trong ${duration(seconds)}, loss ${loss?.toFixed(4)}`,
    stopped: (step) => `đã dừng; trạng thái của bước ${step} được giữ, xếp hàng lại để tiếp tục`,
    nothingKept: "đã dừng; không có trạng thái nào được giữ, lần sau sẽ bắt đầu lại từ đầu",
  },
  ja: {
    panel: "学習パネル", epochs: "エポック", prompts: "テスト画像のプロンプト", progress: "学習の進み具合", chart: "損失のグラフ", enlarge: "拡大", found: "完了済みの学習が見つかりました。",
    notes: (count) => `注意 ${count}件`,
    idle: "学習中、損失・速度・テスト画像がここに表示されます。",
    starting: "開始中", gone: "この学習のフォルダーはもうありません。",
    loss: "損失", validation: "検証", rate: "学習率", speed: "画像/秒", memory: "メモリー", left: "残り", epoch: "エポック",
    before: "学習前", smooth: "平滑化", single: "各ステップの損失", held: "検証画像",
    stop: "止めて残す", stopTip: "学習を止めます。状態とLoRAが残り、もう一度実行すると続きから学習します。", stopping: "停止中",
    path: "フォルダーをコピー", pathTip: "学習ファイルのフォルダーのパス（ComfyUIが動いているパソコン上）をコピーします",
    settings: "設定をコピー", settingsTip: "このノードの全設定をコピーします", copied: "コピーしました", failed: "失敗",
    step: (step, steps, epoch, epochs) => `ステップ ${step}/${steps} · エポック ${epoch}${epochs ? `/${epochs}` : ""}`,
    done: (steps, seconds, loss) => `完了：${steps}ステップ、${duration(seconds)}、損失 ${loss?.toFixed(4)}`,
    stopped: (step) => `停止。ステップ ${step} の状態が残っており、もう一度実行すると続きます`,
    nothingKept: "停止。残った状態はなく、次は最初から始まります",
  },
  zh: {
    panel: "训练面板", epochs: "周期", prompts: "测试图提示词", progress: "训练进度", chart: "损失曲线", enlarge: "放大", found: "找到已完成的训练，",
    notes: (count) => `${count} 条提示`,
    idle: "训练时，这里会显示损失、速度和测试图。",
    starting: "正在开始", gone: "这次训练的文件夹已经不在了。",
    loss: "损失", validation: "验证", rate: "学习率", speed: "图/秒", memory: "内存", left: "剩余", epoch: "周期",
    before: "训练前", smooth: "平滑", single: "每步损失", held: "留出的图片",
    stop: "停止并保留", stopTip: "停止训练并保留状态和一个 LoRA，再次排队即可继续。", stopping: "正在停止",
    path: "复制文件夹", pathTip: "复制训练文件所在文件夹的路径（在运行 ComfyUI 的电脑上）",
    settings: "复制设置", settingsTip: "复制此节点的全部设置", copied: "已复制", failed: "失败",
    step: (step, steps, epoch, epochs) => `第 ${step}/${steps} 步 · 第 ${epoch}${epochs ? `/${epochs}` : ""} 周期`,
    done: (steps, seconds, loss) => `完成：${steps} 步，用时 ${duration(seconds)}，损失 ${loss?.toFixed(4)}`,
    stopped: (step) => `已停止；第 ${step} 步的状态已保留，再次排队即可继续`,
    nothingKept: "已停止；没有保留任何状态，下次将从头开始",
  },
};

// The language of the texts as two letters; English where the frontend's language has none.
export function language() {
  let chosen;
  try {
    chosen = app.extensionManager?.setting?.get("Comfy.Locale");
  } catch {
    chosen = undefined; // settings are not loaded yet
  }
  const short = String(chosen ?? navigator.language ?? "en").slice(0, 2);
  return short in TEXTS ? short : "en";
}

// All texts; `phase` translates a phase of training.
export function words() {
  const chosen = language();
  return { ...TEXTS[chosen], phase: (name) => PHASES[name]?.[chosen] ?? name };
}

// The name of a run for people: its LoRA's name and when it began. `time` is in seconds since 1970.
export function runTitle(run, time) {
  const name = run.replace(/-[0-9a-f]{16}$/, "");
  if (!time) return name;
  const when = new Date(1000 * time).toLocaleString(language(), { month: "short", day: "numeric", hour: "2-digit", minute: "2-digit" });
  return `${name} · ${when}`;
}

// Seconds as "1 h 5 min", "2 min 30 s" or "8 s".
export function duration(seconds) {
  if (!Number.isFinite(seconds)) return "–";
  const whole = Math.max(0, Math.round(seconds));
  const hours = Math.floor(whole / 3600), minutes = Math.floor((whole % 3600) / 60);
  if (hours) return `${hours} h ${minutes} min`;
  return minutes ? `${minutes} min ${whole % 60} s` : `${whole} s`;
}
