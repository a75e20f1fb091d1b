// The texts about what Run will do and need, in the frontend's language.

import { duration, language } from "../panel/words.js";

const TEXTS = {
  en: {
    before: "Before Run",
    next: {
      finished: () => "Run uses the finished LoRA", starts: (_step, steps) => `Run trains ${steps} steps from the beginning`,
      resumes: (step, steps) => `Run resumes at step ${step} of ${steps}`,
      continues: (step, steps) => (
        step < steps ? `Run continues from step ${step} of ${steps}`
          : `Run takes over step ${step}: nothing is left to train`
      ),
    },
    refused: "Run would fail", needsDataset: "Run Dataset Prep once to see images, steps, time and memory here.",
    warnings: (count) => (count === 1 ? "1 warning" : `${count} warnings`), use: (label, value) => `Use ${label} = ${value}`,
    images: (count) => (count === 1 ? "1 image" : `${count} images`), steps: (count) => (count === 1 ? "1 step" : `${count} steps`),
    time: (seconds) => `about ${duration(seconds)}`, unknownTime: "time unknown until a similar run has been trained here",
    memory: (needed, usable) => `memory ${needed} of ${usable} GB`,
    go: (step) => `Continue from step ${step}`, goTip: "Queues the graph: training continues from the last saved step",
    over: "Start over", overTip: "Queues the graph and trains from the first step. Saved steps of a run with exactly these settings are deleted.",
    isSet: (name, value) => `${name} is ${value} now`, isLinked: (name) => `${name} is linked: change it in the node that it comes from`,
    details: "Details",
    beyond: (value, least, most) => `${value} is outside ${least} to ${most}`,
  },
  vi: {
    before: "Trước khi chạy",
    next: {
      finished: () => "Chạy: dùng LoRA đã xong", starts: (_step, steps) => `Chạy: huấn luyện ${steps} bước từ đầu`,
      resumes: (step, steps) => `Chạy: tiếp tục ở bước ${step}/${steps}`,
      continues: (step, steps) => (
        step < steps ? `Chạy: huấn luyện tiếp từ bước ${step}/${steps}`
          : `Chạy: lấy lại bước ${step}, không còn gì để huấn luyện`
      ),
    },
    refused: "Chạy sẽ báo lỗi", needsDataset: "Hãy chạy nút Chuẩn bị bộ dữ liệu một lần để thấy số ảnh, số bước, thời gian và bộ nhớ ở đây.",
    warnings: (count) => `${count} cảnh báo`, use: (label, value) => `Dùng ${label} = ${value}`,
    images: (count) => `${count} ảnh`, steps: (count) => `${count} bước`,
    time: (seconds) => `khoảng ${duration(seconds)}`, unknownTime: "chưa biết thời gian: chưa có lần chạy tương tự trên máy này",
    memory: (needed, usable) => `bộ nhớ ${needed}/${usable} GB`,
    go: (step) => `Tiếp tục từ bước ${step}`, goTip: "Xếp hàng: huấn luyện tiếp từ bước đã lưu gần nhất",
    over: "Bắt đầu lại", overTip: "Xếp hàng và huấn luyện từ bước đầu. Các bước đã lưu của lần chạy có đúng thiết lập này sẽ bị xóa.",
    isSet: (name, value) => `${name} giờ là ${value}`, isLinked: (name) => `${name} đang được nối: hãy đổi ở nút nguồn`,
    details: "Chi tiết",
    beyond: (value, least, most) => `${value} nằm ngoài khoảng ${least} đến ${most}`,
  },
  ja: {
    before: "実行の前に",
    next: {
      finished: () => "実行：完成したLoRAを使います", starts: (_step, steps) => `実行：最初から学習します（${steps}ステップ）`,
      resumes: (step, steps) => `実行：ステップ ${step}/${steps} から再開します`,
      continues: (step, steps) => (
        step < steps ? `実行：ステップ ${step}/${steps} から続けます`
          : `実行：ステップ ${step} を引き継ぎます（学習の残りはありません）`
      ),
    },
    refused: "このままでは実行できません", needsDataset: "「データセット準備」を一度実行すると、画像数・ステップ数・時間・メモリーがここに表示されます。",
    warnings: (count) => `警告 ${count}件`, use: (label, value) => `${label} = ${value} にする`,
    images: (count) => `画像${count}枚`, steps: (count) => `${count}ステップ`,
    time: (seconds) => `約${duration(seconds)}`, unknownTime: "時間は不明（似た学習がまだありません）",
    memory: (needed, usable) => `メモリー${needed}/${usable} GB`,
    go: (step) => `ステップ ${step} から続ける`, goTip: "実行します。保存された最後のステップから学習を続けます",
    over: "最初からやり直す", overTip: "最初のステップから学習します。まったく同じ設定の学習で保存されたステップは削除されます。",
    isSet: (name, value) => `${name} を ${value} にしました`, isLinked: (name) => `${name} は接続されています。接続元のノードで変更してください`,
    details: "詳細",
    beyond: (value, least, most) => `${value} は範囲外です（${least}〜${most}）`,
  },
  zh: {
    before: "运行之前",
    next: {
      finished: () => "运行：使用已完成的 LoRA", starts: (_step, steps) => `运行：从头训练 ${steps} 步`,
      resumes: (step, steps) => `运行：从第 ${step}/${steps} 步恢复`,
      continues: (step, steps) => (
        step < steps ? `运行：从第 ${step}/${steps} 步接着训练`
          : `运行：沿用第 ${step} 步，无需再训练`
      ),
    },
    refused: "这样运行会失败", needsDataset: "先运行一次“数据集准备”，这里就会显示图片数、步数、时间和内存。",
    warnings: (count) => `${count} 条警告`, use: (label, value) => `改用 ${label} = ${value}`,
    images: (count) => `${count} 张图片`, steps: (count) => `${count} 步`,
    time: (seconds) => `约 ${duration(seconds)}`, unknownTime: "时间未知：这台机器上还没有类似的训练",
    memory: (needed, usable) => `内存 ${needed}/${usable} GB`,
    go: (step) => `从第 ${step} 步继续`, goTip: "排队运行：从最后保存的一步接着训练",
    over: "从头开始", overTip: "排队运行，并从第一步开始训练。设置完全相同的训练所保存的步会被删除。",
    isSet: (name, value) => `${name} 现在是 ${value}`, isLinked: (name) => `${name} 已连线：请在来源节点中修改`,
    details: "详情",
    beyond: (value, least, most) => `${value} 超出范围（${least} 到 ${most}）`,
  },
};

export function beforeWords() {
  return TEXTS[language()];
}
