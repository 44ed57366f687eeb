"""The sandbox's pictures: any prompt can be read in them, or is a box, and independent decoders accept them."""

import io
import time
from typing import Any

import av
import httpx
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from PIL import Image

from kling_receiver.results.media import sniff
from kling_sandbox import Sandbox
from kling_sandbox.media import DRAWN, render
from kling_sandbox.pictures.font import BOX, GLYPHS
from kling_sandbox.pictures.page import IMAGE_PIXELS, VIDEO_PIXELS, Page
from tests.support.receiver import KEY

PROMPT = "Hello kangaroo, a SIGN says: {yes} & [no]?"
RATIOS = ("16:9", "9:16", "1:1", "4:3", "3:4", "3:2", "2:3", "21:9")
CHARACTERS = {rows: character for character, rows in GLYPHS.items()} | {BOX: "□"}


def decode(extension: str, content: bytes, frame: int = 0) -> Image.Image:
    """The picture, or one frame of the video, in shades of grey."""
    if extension != "mp4":
        image = Image.open(io.BytesIO(content))
        image.load()
        return image.convert("L")
    with av.open(io.BytesIO(content), "r") as video:
        frames = list(video.decode(video=0))
        assert len(frames) == 50
        assert video.duration == 5_000_000
        chosen: Any = frames[frame]
        shown: Image.Image = chosen.to_image().convert("L")
        return shown


def read(image: Image.Image, dot: int, cell: tuple[int, int], margin: int) -> list[str]:
    """The lines of text in a picture. `dot`: pixels; `cell`: those of a character; `margin`: left of it in its cell."""
    lit = image.point([255 * (value > 150) for value in range(256)])
    lines, y = [], 0
    while y + 7 * dot <= image.height:
        if not lit.crop((0, y, image.width, y + 1)).getbbox():
            y += 1
            continue
        text = ""
        for x in range(cell[0] + margin, image.width - 5 * dot + 1, cell[0]):
            rows = tuple(
                sum(
                    (lit.getpixel((x + column * dot + dot // 2, y + row * dot + dot // 2)) == 255) << (4 - column)
                    for column in range(5)
                )
                for row in range(7)
            )
            text += CHARACTERS.get(rows, "¿")
        lines.append(text.rstrip())
        y += 8 * dot
    return lines


def scale_of(page: Page, extension: str) -> tuple[int, tuple[int, int], int]:
    """How large the letters are, for `read`."""
    if extension == "mp4":
        return 2, (16, 16), 3
    width, height = page.size(IMAGE_PIXELS, 16)
    if extension == "jpg":
        dot = 8 * page.lines(width // 8, height // 8, (2, 1))[0]
    else:
        dot = page.lines(width, height, (9, 8, 7, 6, 5, 4, 3, 2))[0]
    return dot, (6 * dot, 9 * dot), 0


@pytest.mark.parametrize("extension", DRAWN)
@pytest.mark.parametrize("ratio", RATIOS)
def test_the_prompt_can_be_read(extension: str, ratio: str) -> None:
    """In each format and ratio, with what it is not; the size is exact, and small in bytes."""
    page = Page(PROMPT, "2/4", ratio, 3)
    content = render(extension, page, "stamp")
    image = decode(extension, content)
    wide, high = map(int, ratio.split(":"))
    assert image.width * high == image.height * wide
    assert 0.7 < image.width * image.height / (VIDEO_PIXELS if extension == "mp4" else IMAGE_PIXELS) <= 1.01
    shown = " ".join(read(image, *scale_of(page, extension)))
    assert " ".join(shown.split()) == f"{PROMPT} sandbox, not Kling 2/4"
    assert len(content) < 60_000
    assert sniff(content[:4096]) == {"png": "image/png", "jpg": "image/jpeg", "mp4": "video/mp4"}[extension]


def test_the_video_moves() -> None:
    """The bar below grows from frame to frame; the text stays."""
    page = Page(PROMPT, "", "16:9")
    content = render("mp4", page, "")
    ends = []
    for frame in (1, 10, 30, 49):
        image = decode("mp4", content, frame)
        bar = image.crop((0, image.height - 2, image.width, image.height - 1)).tobytes()[::16]
        assert bytes(sorted(bar, reverse=True)) == bar
        ends.append(sum(value > 100 for value in bar))
        assert read(image.crop((0, 0, image.width, image.height - 16)), 2, (16, 16), 3)[0].startswith("Hello kangaroo")
    assert ends == [0, 8, 24, 40]


@pytest.mark.parametrize(
    ("prompt", "shown"),
    [
        ("Café “déjà vu” – naïve", 'Cafe "deja vu" - naive'),
        ("一只袋鼠 holding", "□□□□ holding"),
        ("Привет", "□□□□□□"),
        ("A ｆｕｌｌ width，１２", "A full width,12"),
        ("a\tb\nc\u2028d", "a b c d"),
        ("H\u0301\u0301\u0301ello \U0001f998", "Hello □"),
        ("", ""),
    ],
)
def test_any_language_is_shown_as_far_as_it_can_be(prompt: str, shown: str) -> None:
    """Accents are left out, other scripts are boxes."""
    page = Page(prompt, "", "1:1")
    lines = read(decode("png", render("png", page, "")), *scale_of(page, "png"))
    assert " ".join(" ".join(lines).split()).removesuffix("sandbox, not Kling").rstrip() == shown


@settings(max_examples=25, deadline=None, database=None)
@given(prompt=st.text(max_size=3000), ratio=st.sampled_from([*RATIOS, "auto", ""]), colour=st.integers(0, 200))
@pytest.mark.parametrize("extension", DRAWN)
def test_any_prompt_makes_a_file(extension: str, prompt: str, ratio: str, colour: int) -> None:
    """Of any length and characters."""
    content = DRAWN[extension](Page(prompt, "1/9 with a watermark", ratio, colour))
    decode(extension, content)
    assert len(content) < 70_000


@pytest.mark.parametrize("extension", DRAWN)
def test_a_picture_takes_milliseconds_once(extension: str) -> None:
    """The same again is not drawn again; the stamp makes each file another."""
    page = Page("how long does it take", "", "16:9", 7)
    started = time.process_time()
    first = render(extension, page, "a")
    assert time.process_time() - started < 0.25  # about 5 ms; many times that on a busy machine under coverage
    drawn = DRAWN[extension](page)
    assert drawn == DRAWN[extension](page)
    assert first != render(extension, page, "b")
    assert len(render(extension, page, "b", 200_000)) >= 200_000
    decode(extension, render(extension, page, "b", 200_000))


CREATES: dict[str, tuple[str, dict[str, Any], str, str]] = {
    "legacy": (
        "/v1/images/generations",
        {"prompt": "Hi [sandbox: repeat] you", "aspect_ratio": "3:2"},
        "png",
        "Hi you",
    ),
    "of another format": (
        "/v1/images/generations",
        {"prompt": "Hello", "model_name": "kling-v3", "output_format": "jpg", "aspect_ratio": "1:1"},
        "jpg",
        "Hello",
    ),
    "a video": ("/v1/videos/text2video", {"prompt": "Hello", "aspect_ratio": "9:16"}, "mp4", "Hello"),
}


@pytest.mark.parametrize("name", CREATES)
def test_the_files_of_a_task_show_its_prompt(gateway: Sandbox, name: str) -> None:
    """Without the sandbox's marks, and in the ratio that was asked for; twice the same bytes."""
    path, body, extension, shown = CREATES[name]
    headers = {"Authorization": f"Bearer {KEY}"}
    answer = httpx.post(f"{gateway.url}{path}", json=body, headers=headers)
    assert answer.status_code == 200, answer.text
    task = gateway.tasks[answer.json()["data"]["task_id"]]
    gateway.wait_for(lambda: task.finished_at)
    url = task.file_url(task.files[0])
    first, second = (httpx.get(url).content for _ in range(2))
    assert first == second
    image = decode(extension, first)
    wide, high = map(int, body["aspect_ratio"].split(":"))
    assert image.width * high == image.height * wide
    page = Page(shown, "", body["aspect_ratio"])
    lines = read(image, *scale_of(page, extension))
    assert " ".join(" ".join(lines).split()) == f"{shown} sandbox, not Kling"


def test_several_images_and_their_copies_are_told_apart(gateway: Sandbox) -> None:
    """By a number, and by what the copy is."""
    body = {"prompt": "Hello", "n": 2, "aspect_ratio": "1:1", "watermark_info": {"enabled": True}}
    answer = httpx.post(f"{gateway.url}/v1/images/generations", json=body, headers={"Authorization": f"Bearer {KEY}"})
    task = gateway.tasks[answer.json()["data"]["task_id"]]
    gateway.wait_for(lambda: task.finished_at)
    for name, note in (("0.png", "1/2"), ("1.png", "2/2"), ("1-watermark.png", "2/2 with a watermark")):
        image = decode("png", httpx.get(task.file_url(name)).content)
        lines = read(image, *scale_of(Page("Hello", note, "1:1"), "png"))
        assert " ".join(" ".join(lines).split()) == f"Hello sandbox, not Kling {note}"
