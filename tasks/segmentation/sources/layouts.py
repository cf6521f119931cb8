"""Published data sets in their own layouts: which image goes with which mask, and what the numbers mean."""

from __future__ import annotations

from collections.abc import Callable, Sequence
from pathlib import Path

from kdbench.base.files import listed, read_text, reason
from kdbench.errors import KDBenchError
from tasks.segmentation.sources.base import IGNORED, Labels, Layout, Sample
from tasks.segmentation.sources.maskfolder import mask_folder
from tasks.segmentation.sources.names import (
    ADE20K,
    CAMVID,
    CITYSCAPES,
    CITYSCAPES_IDS,
    COCO_STUFF,
    COCO_STUFF_ABSENT,
    VOC,
)
from tasks.segmentation.sources.pairs import files, paired


def cityscapes(root: Path) -> Layout:
    """Cityscapes' ``leftImg8bit/{train,val}/CITY/*_leftImg8bit.png``, and the same of ``gtFine``.

    There the names end in ``_gtFine_labelIds.png``, or in ``_gtFine_labelTrainIds.png``. ``val`` is our test, as the
    labels of its test set are not published.
    """
    ids = {number: CITYSCAPES.index(n) if n in CITYSCAPES else IGNORED for number, n in enumerate(CITYSCAPES_IDS)}
    kinds = {
        "labelIds": Labels(CITYSCAPES, ids | {IGNORED: IGNORED}),  # 255 stands for the license plate, -1
        "labelTrainIds": Labels.of(CITYSCAPES),
    }
    cities = sorted(listed(root / "gtFine" / "train"))
    found = {city: files(root / "gtFine" / "train" / city, *_fine(kinds)) for city in cities}
    first = next((path for own in found.values() for path in own.values()), None)
    if first is None:
        raise _absent(root, "gtFine/train/CITY/*_gtFine_labelIds.png", "leftImg8bit and gtFine")
    kind = next(kind for kind in kinds if first.name.endswith(tuple(_fine([kind]))))
    parts = {}
    for part in ("train", "val"):
        folders = root / "leftImg8bit" / part, root / "gtFine" / part
        images, masks = (
            {f"{city}/{stem}": path for city in sorted(listed(top)) for stem, path in files(top / city, suffix).items()}
            for top, suffix in zip(folders, ("_leftImg8bit.png", *_fine([kind])), strict=True)
        )
        parts[part] = paired(part, folders[0], images, masks)
    return Layout("cityscapes", kinds[kind], parts["train"], parts["val"])


def _fine(kinds: Sequence[str] | dict[str, Labels]) -> list[str]:
    return [f"_gtFine_{kind}.png" for kind in kinds]


def camvid(root: Path) -> Layout:
    """CamVid as SegNet has it: ``{train,val,test}/*.png`` and ``{train,val,test}annot/*.png``, 11 being of no class."""
    parts = {
        part: paired(part, root / part, files(root / part, ".png", ".jpg"), files(root / f"{part}annot", ".png"))
        for part in ("train", "val", "test")
    }
    labels = Labels.of(CAMVID, void=(len(CAMVID), IGNORED))
    return Layout("camvid", labels, parts["train"], parts["test"], parts["val"])


def ade20k(root: Path) -> Layout:
    """ADE20K's challenge: ``images`` and ``annotations``, each with ``training`` and ``validation``; 0 is no class."""
    root = _inner(root, "images", "ADEChallengeData2016")
    parts = {}
    for part in ("training", "validation"):
        images, masks = root / "images" / part, root / "annotations" / part
        parts[part] = paired(part, images, files(images, ".jpg"), files(masks, ".png"))
    return Layout("ade20k", Labels.of(ADE20K, first=1, void=(0, IGNORED)), parts["training"], parts["validation"])


def voc(root: Path) -> Layout:
    """PASCAL VOC 2012: ``JPEGImages``, ``SegmentationClass`` and the lists in ``ImageSets/Segmentation``.

    Where there are ``trainaug.txt`` and ``SegmentationClassAug``, the training masks of Hariharan et al. (ICCV 2011),
    these are used, as the tables of the literature do.
    """
    root = _inner(root, "ImageSets", "VOC2012", "VOCdevkit/VOC2012")
    sets = root / "ImageSets" / "Segmentation"
    more = (sets / "trainaug.txt").is_file() and (root / "SegmentationClassAug").is_dir()
    masks = root / ("SegmentationClassAug" if more else "SegmentationClass")
    parts = {}
    for part, name in (("train", "trainaug" if more else "train"), ("val", "val")):
        path = sets / f"{name}.txt"
        try:
            names = [line.split()[0] for line in read_text(path).splitlines() if line.split()]
        except (OSError, UnicodeDecodeError) as error:
            raise KDBenchError(f"{path}: cannot be read ({reason(error)}); expected an image's name a line") from None
        stems = [Path(entry).stem for entry in names]  # some lists hold paths of image and mask
        images = {stem: root / "JPEGImages" / f"{stem}.jpg" for stem in stems}
        parts[part] = _present(part, images, {stem: masks / f"{stem}.png" for stem in stems}, path)
    return Layout("voc", Labels.of(VOC), parts["train"], parts["val"])


def cocostuff(root: Path) -> Layout:
    """COCO-Stuff 164K: images in ``[images/]{train,val}2017``, masks in folders of that name.

    These are below ``stuffthingmaps_trainval2017``, ``stuffthingmaps`` or ``annotations``; their numbers are those of
    the release (0 to 181), or of files that end in ``_labelTrainIds.png`` 0 to 170.
    """
    tops = ("stuffthingmaps_trainval2017", "stuffthingmaps", "annotations")
    top = next((root / top for top in tops if (root / top / "train2017").is_dir()), None)
    if top is None:
        raise _absent(root, "stuffthingmaps_trainval2017/train2017/*.png", "images and stuffthingmaps_trainval2017")
    trained = "_labeltrainids.png"
    converted = bool(files(top / "train2017", trained))
    parts = {}
    for part in ("train2017", "val2017"):
        images = root / "images" / part if (root / "images").is_dir() else root / part
        masks = files(top / part, trained if converted else ".png")
        parts[part] = paired(part, images, files(images, ".jpg"), masks)
    numbers = [n for n in range(len(COCO_STUFF) + len(COCO_STUFF_ABSENT)) if n not in COCO_STUFF_ABSENT]
    released = Labels(COCO_STUFF, {n: c for c, n in enumerate(numbers)} | {IGNORED: IGNORED})
    labels = Labels.of(COCO_STUFF) if converted else released
    return Layout("cocostuff", labels, parts["train2017"], parts["val2017"])


def _inner(root: Path, holds: str, *folders: str) -> Path:
    """Returns the folder that holds ``holds``: ``root``, or one of those below it."""
    for folder in (root, *(root / name for name in folders)):
        if (folder / holds).is_dir():
            return folder
    raise KDBenchError(f"data.root={root}: there is no folder {holds}; expected it there or in {' or '.join(folders)}")


def _present(part: str, images: dict[str, Path], masks: dict[str, Path], list_: Path) -> tuple[Sample, ...]:
    """Joins listed images and masks.

    Raises:
        KDBenchError: None is listed, or one is not there.
    """
    if not images:
        raise KDBenchError(f"{list_}: lists no image; expected a name a line")
    for name in images:
        for path in (images[name], masks[name]):
            if not path.is_file():
                raise KDBenchError(f"{path}: there is no such file; {list_} lists {name}")
    return tuple(Sample(f"{part}/{name}", images[name], masks[name]) for name in images)


def _absent(root: Path, what: str, expected: str) -> KDBenchError:
    return KDBenchError(f"data.root={root}: there is no {what}; expected a folder that holds {expected}")


#: By name, what reads a data set at its root.
LAYOUTS: dict[str, Callable[[Path], Layout]] = {
    "cityscapes": cityscapes,
    "camvid": camvid,
    "ade20k": ade20k,
    "voc": voc,
    "cocostuff": cocostuff,
    "maskfolder": mask_folder,
}
#: What ``data.root`` holds.
HOLDS = {
    "cityscapes": "leftImg8bit/{train,val}/CITY/*.png and gtFine/{train,val}/CITY/*_gtFine_labelIds.png",
    "camvid": "{train,val,test}/*.png and {train,val,test}annot/*.png",
    "ade20k": "{images,annotations}/{training,validation}",
    "voc": "JPEGImages, SegmentationClass and ImageSets/Segmentation/{train,val}.txt",
    "cocostuff": "images/{train,val}2017 and stuffthingmaps_trainval2017/{train,val}2017",
    "maskfolder": "images/, masks/ and classes.txt",
}
