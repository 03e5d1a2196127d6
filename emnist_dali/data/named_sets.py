"""Published sets of small grey images other than EMNIST: where their files are, and their hashes.

Hashes and sizes are those that other projects check: sha256 and bytes as in TensorFlow Datasets' url_checksums
(MNIST, Fashion-MNIST, Kuzushiji-MNIST); md5 as in torchvision (QMNIST), medmnist 3.0.2 (MedMNIST v2, 28 × 28 pixels)
and five public loaders that agree (Kuzushiji-49). A size of None is not given there.
"""

from dataclasses import dataclass

_DIGITS = tuple("0123456789")
_HIRAGANA = "あいうえおかきくけこさしすせそたちつてとなにぬねのはひふへほまみむめもやゆよらりるれろわゐゑをんゝ"
_ORGANS = (
    "bladder", "femur-left", "femur-right", "heart", "kidney-left", "kidney-right", "liver", "lung-left",
    "lung-right", "pancreas", "spleen",
)  # fmt: skip


@dataclass(frozen=True)
class NamedFile:
    """Name, size in bytes if known, and hex digest: an md5 if it has 32 digits, otherwise a sha256."""

    name: str
    bytes: int | None
    digest: str


@dataclass(frozen=True)
class NamedSet:
    """Files at `url` + name + `query`; `classes` are in label order, and labels count from 0. Images are upright."""

    title: str
    url: str
    classes: tuple[str, ...]
    files: tuple[NamedFile, ...]
    query: str = ""


def _idx(*rows: tuple[int, str], names: tuple[str, str] = ("train", "t10k")) -> tuple[NamedFile, ...]:
    return tuple(
        NamedFile(f"{part}-{kind}-ubyte.gz", *row)
        for (part, kind), row in zip(
            [(part, kind) for part in names for kind in ("images-idx3", "labels-idx1")], rows, strict=True
        )
    )


def _medmnist(title: str, md5: str, *classes: str) -> NamedSet:
    files = (NamedFile(f"{title.lower()}.npz", None, md5),)
    return NamedSet(title, "https://zenodo.org/records/10519652/files/", classes, files, "?download=1")


SETS = {
    "fashion": NamedSet(
        "Fashion-MNIST",
        "http://fashion-mnist.s3-website.eu-central-1.amazonaws.com/",
        ("T-shirt/top", "Trouser", "Pullover", "Dress", "Coat", "Sandal", "Shirt", "Sneaker", "Bag", "Ankle boot"),
        _idx(
            (26_421_880, "3aede38d61863908ad78613f6a32ed271626dd12800ba2636569512369268a84"),
            (29_515, "a04f17134ac03560a47e3764e11b92fc97de4d1bfaf8ba1a3aa29af54cc90845"),
            (4_422_102, "346e55b948d973a97e58d2351dde16a484bd415d4595297633bb08f03db6a073"),
            (5_148, "67da17c76eaffca5446c3361aaab5c3cd6d1c2608764d35dfb1850b086bf8dd5"),
        ),
    ),
    "kmnist": NamedSet(
        "Kuzushiji-MNIST",
        "http://codh.rois.ac.jp/kmnist/dataset/kmnist/",
        tuple("おきすつなはまやれを"),
        _idx(
            (18_165_135, "51467d22d8cc72929e2a028a0428f2086b092bb31cfb79c69cc0a90ce135fde4"),
            (29_497, "e38f9ebcd0f3ebcdec7fc8eabdcdaef93bb0df8ea12bee65224341c8183d8e17"),
            (3_041_136, "edd7a857845ad6bb1d0ba43fe7e794d164fe2dce499a1694695a792adfac43c5"),
            (5_120, "20bb9a0ef54c7db3efc55a92eef5582c109615df22683c380526788f98e42a1c"),
        ),
    ),
    "k49": NamedSet(
        "Kuzushiji-49",
        "http://codh.rois.ac.jp/kmnist/dataset/k49/",
        tuple(_HIRAGANA),
        (
            NamedFile("k49-train-imgs.npz", None, "7ac088b20481cf51dcd01ceaab89d821"),
            NamedFile("k49-train-labels.npz", None, "44a8e1b893f81e63ff38d73cad420f7a"),
            NamedFile("k49-test-imgs.npz", None, "d352e201d846ce6b94f42c990966f374"),
            NamedFile("k49-test-labels.npz", None, "4da6f7a62e67a832d5eb1bd85c5ee448"),
        ),
    ),
    "qmnist": NamedSet(
        "QMNIST",
        "https://raw.githubusercontent.com/facebookresearch/qmnist/master/",
        _DIGITS,
        (
            NamedFile("qmnist-train-images-idx3-ubyte.gz", None, "ed72d4157d28c017586c42bc6afe6370"),
            NamedFile("qmnist-train-labels-idx2-int.gz", None, "0058f8dd561b90ffdd0f734c6a30e5e4"),
            NamedFile("qmnist-test-images-idx3-ubyte.gz", None, "1394631089c404de565df7b7aeaf9412"),
            NamedFile("qmnist-test-labels-idx2-int.gz", None, "5b5b05890a5e13444e108efe57b788aa"),
        ),
    ),
    "pathmnist": _medmnist(
        "PathMNIST", "a8b06965200029087d5bd730944a56c1", "adipose", "background", "debris", "lymphocytes", "mucus",
        "smooth muscle", "normal colon mucosa", "cancer-associated stroma", "colorectal adenocarcinoma epithelium",
    ),
    "dermamnist": _medmnist(
        "DermaMNIST", "0744692d530f8e62ec473284d019b0c7", "actinic keratoses and intraepithelial carcinoma",
        "basal cell carcinoma", "benign keratosis-like lesions", "dermatofibroma", "melanoma", "melanocytic nevi",
        "vascular lesions",
    ),
    "octmnist": _medmnist(
        "OCTMNIST", "c68d92d5b585d8d81f7112f81e2d0842", "choroidal neovascularization", "diabetic macular edema",
        "drusen", "normal",
    ),
    "pneumoniamnist": _medmnist("PneumoniaMNIST", "28209eda62fecd6e6a2d98b1501bb15f", "normal", "pneumonia"),
    "retinamnist": _medmnist(
        "RetinaMNIST", "bd4c0672f1bba3e3a89f0e4e876791e4", "grade 0", "grade 1", "grade 2", "grade 3", "grade 4",
    ),
    "breastmnist": _medmnist("BreastMNIST", "750601b1f35ba3300ea97c75c52ff8f6", "malignant", "normal, benign"),
    "bloodmnist": _medmnist(
        "BloodMNIST", "7053d0359d879ad8a5505303e11de1dc", "basophil", "eosinophil", "erythroblast",
        "immature granulocytes(myelocytes, metamyelocytes and promyelocytes)", "lymphocyte", "monocyte", "neutrophil",
        "platelet",
    ),
    "tissuemnist": _medmnist(
        "TissueMNIST", "ebe78ee8b05294063de985d821c1c34b", "Collecting Duct, Connecting Tubule",
        "Distal Convoluted Tubule", "Glomerular endothelial cells", "Interstitial endothelial cells", "Leukocytes",
        "Podocytes", "Proximal Tubule Segments", "Thick Ascending Limb",
    ),
    "organamnist": _medmnist("OrganAMNIST", "68e3f8846a6bd62f0c9bf841c0d9eacc", *_ORGANS),
    "organcmnist": _medmnist("OrganCMNIST", "b9ceb9546e10131b32923c5bbeaea2b1", *_ORGANS),
    "organsmnist": _medmnist("OrganSMNIST", "9ab87b696fb54e2a387ebe992d6ed5f1", *_ORGANS),
}  # fmt: skip

# Known by their hashes only: the split of EMNIST named mnist is another conversion of the same digits.
MNIST = _idx(
    (9_912_422, "440fcabf73cc546fa21475e81ea370265605f56be210a4024d2ca8f203523609"),
    (28_881, "3552534a0a558bbed6aed32b30c495cca23d567ec52cac8be1a0730e8010255c"),
    (1_648_877, "8d422c7b0a1c1c79245a5bcf07fe86e33eeafee792b84584aec276f5a2dbc4e6"),
    (4_542, "f7ae60f92e00ec6debd23a6088c31dbd2371eca3ffa0defaefb259924204aec6"),
)

# Digest → the set that the file is of.
DIGESTS = {file.digest: name for name, of in SETS.items() for file in of.files} | {
    file.digest: "mnist" for file in MNIST
}
