// The texts of the buttons that control a training, in the frontend's language.

import { language } from "./words.js";

const TEXTS = {
  en: {
    saveNow: "Save now", saveNowTip: "Saves the training state and a LoRA after this step, for Epoch Compare and Pick Epoch",
    sampleNow: "Sample now", sampleNowTip: "Makes validation images after this step",
    pause: "Pause", resume: "Resume", pauseTip: "Waits after this step. The models stay in memory; only the computing stops.",
    stopEpoch: "Stop after this epoch", stopEpochTip: "Stops at the end of this epoch and saves its state and a LoRA. Queue again to resume.",
    usePrompts: "Use edited prompts", usePromptsTip: "The next validation images show the prompts as they are in this node now",
    useTip: "Puts Load LoRA with the LoRA of the last saved step beside the node",
    more: (epochs) => `+${epochs} epochs`, moreTip: "Queues more epochs: training continues from where this run ended",
    asked: "Asked; it happens after the current step.", refused: "This training does not take requests any more.",
    done: {
      save_now: "Saved", sample_now: "Making validation images", pause: "Paused; the models stay in memory", resume: "Resumed",
      stop_after_epoch: "Stops after this epoch", edit_prompts: "The next validation images show the edited prompts",
    },
  },
  vi: {
    saveNow: "Lưu ngay", saveNowTip: "Sau bước này, lưu trạng thái và một LoRA cho nút So sánh epoch và Chọn epoch",
    sampleNow: "Vẽ thử ngay", sampleNowTip: "Vẽ ảnh thử sau bước này",
    pause: "Tạm dừng", resume: "Tiếp tục", pauseTip: "Chờ sau bước này. Mô hình vẫn ở trong bộ nhớ, chỉ ngừng tính toán.",
    stopEpoch: "Dừng sau epoch này", stopEpochTip: "Dừng ở cuối epoch này, lưu trạng thái và một LoRA. Xếp hàng lại để tiếp tục.",
    usePrompts: "Dùng prompt đã sửa", usePromptsTip: "Ảnh thử tiếp theo dùng prompt đang có trong nút này",
    useTip: "Đặt nút Nạp LoRA với LoRA của bước đã lưu cuối cùng bên cạnh nút",
    more: (epochs) => `+${epochs} epoch`, moreTip: "Xếp hàng thêm epoch: huấn luyện tiếp từ chỗ lần chạy này kết thúc",
    asked: "Đã yêu cầu; sẽ làm sau bước hiện tại.", refused: "Lần huấn luyện này không nhận yêu cầu nữa.",
    done: {
      save_now: "Đã lưu", sample_now: "Đang vẽ ảnh thử", pause: "Đã tạm dừng; mô hình vẫn ở trong bộ nhớ", resume: "Đã tiếp tục",
      stop_after_epoch: "Sẽ dừng sau epoch này", edit_prompts: "Ảnh thử tiếp theo dùng prompt đã sửa",
    },
  },
  ja: {
    saveNow: "今すぐ保存", saveNowTip: "このステップの後、学習の状態とLoRAを保存します（「エポックの比較」と「エポックを選ぶ」で使えます）",
    sampleNow: "今すぐテスト", sampleNowTip: "このステップの後、テスト画像を作成します",
    pause: "一時停止", resume: "再開", pauseTip: "このステップの後で待ちます。モデルはメモリーに残り、計算だけが止まります。",
    stopEpoch: "このエポックで停止", stopEpochTip: "このエポックの終わりに停止し、状態とLoRAを保存します。もう一度実行すると続きます。",
    usePrompts: "編集したプロンプトを使う", usePromptsTip: "次のテスト画像から、このノードの現在のプロンプトを使います",
    useTip: "最後に保存されたステップのLoRAを読み込むノードを横に置きます",
    more: (epochs) => `+${epochs}エポック`, moreTip: "エポックを追加して実行します。この学習の終わりから続きます",
    asked: "依頼しました。現在のステップの後に行われます。", refused: "この学習はもう依頼を受け付けません。",
    done: {
      save_now: "保存しました", sample_now: "テスト画像を作成中", pause: "一時停止中。モデルはメモリーに残っています", resume: "再開しました",
      stop_after_epoch: "このエポックの後に停止します", edit_prompts: "次のテスト画像から編集したプロンプトを使います",
    },
  },
  zh: {
    saveNow: "立即保存", saveNowTip: "在这一步之后保存训练状态和一个 LoRA，供“轮次对比”和“挑选轮次”使用",
    sampleNow: "立即绘制", sampleNowTip: "在这一步之后绘制测试图",
    pause: "暂停", resume: "继续", pauseTip: "在这一步之后等待。模型留在内存中，只停止计算。",
    stopEpoch: "本周期后停止", stopEpochTip: "在本周期结束时停止，并保存状态和一个 LoRA。再次排队即可继续。",
    usePrompts: "使用修改后的提示词", usePromptsTip: "接下来的测试图使用此节点当前的提示词",
    useTip: "在节点旁放置加载最后保存的 LoRA 的节点",
    more: (epochs) => `+${epochs} 周期`, moreTip: "增加周期并排队：从这次训练结束处接着训练",
    asked: "已请求，将在当前步之后进行。", refused: "这次训练不再接受请求。",
    done: {
      save_now: "已保存", sample_now: "正在绘制测试图", pause: "已暂停；模型留在内存中", resume: "已继续",
      stop_after_epoch: "将在本周期后停止", edit_prompts: "接下来的测试图使用修改后的提示词",
    },
  },
};

export function controlWords() {
  return TEXTS[language()];
}
