"""The files of a result, and what Kling made that is no file, in both standards."""

import json
from typing import Any

import pytest

from kling_callback.protocol.reports import parse_callback
from kling_callback.protocol.results.fields import MAX_OBJECT_CHARS
from kling_callback.protocol.results.outputs import MAX_NAME_CHARS, MAX_OBJECTS_CHARS, MAX_OUTPUTS, MAX_RECORDS, Output
from kling_callback.protocol.values import MAX_DEPTH, MAX_ID_CHARS, MAX_URL_CHARS
from tests.client.protocol.test_reports import LEGACY, NEW, body
from tests.client.protocol.test_values import list_of, nested


def test_images_are_in_kling_s_order() -> None:
    """Images are sorted by their index; an invalid index counts as 0."""
    images = [
        {"index": 1, "url": "https://h/1"},
        {"index": 0, "url": "https://h/0"},
        {"index": "x", "url": "s"},
    ]
    report = parse_callback(body({**LEGACY, "task_result": {"images": images}}))
    assert report is not None
    assert [each.url for each in report.outputs] == ["https://h/0", "s", "https://h/1"]
    assert {each.kind for each in report.outputs} == {"image"}


def test_audio_has_both_formats() -> None:
    """One audio with an mp3 and a wav address is two files, in both standards."""
    legacy = {
        **LEGACY,
        "task_result": {"audios": [{"id": "a", "url_mp3": "https://h/m", "url_wav": "https://h/w"}]},
    }
    new = {**NEW, "outputs": [{"type": "audio", "id": "a", "mp3_url": "https://h/m", "wav_url": "https://h/w"}]}
    for record in (legacy, new):
        report = parse_callback(body(record))
        assert report is not None
        assert [(each.kind, each.url) for each in report.outputs] == [
            ("audio", "https://h/m"),
            ("audio", "https://h/w"),
        ]


def test_each_format_of_an_audio_has_its_length() -> None:
    """Kling names it beside the address, in both standards; else that of the audio counts."""
    legacy = {"url_mp3": "https://h/m", "url_wav": "https://h/w", "duration_mp3": "2.5", "duration": "3"}
    new = {"type": "audio", "mp3_url": "https://h/m", "wav_url": "https://h/w", "mp3_duration": "2.5", "duration": 3}
    for record in ({**LEGACY, "task_result": {"audios": [legacy]}}, {**NEW, "outputs": [new]}):
        report = parse_callback(body(record))
        assert report is not None
        assert [each.duration for each in report.outputs] == [2.5, 3.0]


def test_a_series_is_images() -> None:
    """The `series_images` of omni image are images too."""
    report = parse_callback(body({**LEGACY, "task_result": {"series_images": [{"index": 0, "url": "https://h/0"}]}}))
    assert report is not None
    assert report.outputs == (Output("image", "https://h/0"),)


def test_watermarked_copies_are_last() -> None:
    """A watermarked copy is a file of its own, after all results; one with the same address is not."""
    items = [
        {"type": "video", "id": "v", "duration": 5, "url": "https://h/1", "watermark_url": "https://h/w1"},
        {"type": "video", "url": "https://h/2", "watermark_url": "https://h/2"},
    ]
    report = parse_callback(body({**NEW, "outputs": items}))
    assert report is not None
    assert [(each.kind, each.url) for each in report.outputs] == [
        ("video", "https://h/1"),
        ("video", "https://h/2"),
        ("watermark", "https://h/w1"),
    ]
    assert report.outputs[2] == Output("watermark", "https://h/w1", "v", 5.0)


def test_a_file_of_no_kind_is_a_file() -> None:
    """A file without a kind, or with an oversized one, is still downloaded."""
    items = [{"url": "https://h/1"}, {"type": "model", "url": "https://h/2"}, {"type": "x" * 300, "url": "u"}]
    report = parse_callback(body({**NEW, "outputs": items}))
    assert report is not None
    assert [each.kind for each in report.outputs] == ["file", "model", "x" * MAX_ID_CHARS]
    report = parse_callback(body({**LEGACY, "task_result": {"y" * 300: [{"url": "u"}]}}))
    assert report is not None
    assert report.outputs == (Output("y" * MAX_ID_CHARS, "u"),)


def test_outputs_are_limited() -> None:
    """At most a hundred files of one task are read, and no address beyond its limit."""
    videos = [
        {"url": "x" * (MAX_URL_CHARS + 1)},
        {"url": "x" * MAX_URL_CHARS},
        {"url": 1},
        "x",
        *({"url": f"https://h/{n}"} for n in range(500)),
    ]
    report = parse_callback(body({**LEGACY, "task_result": {"videos": videos, "images": "x"}}))
    assert report is not None
    assert len(report.outputs) == MAX_OUTPUTS
    assert [each.url for each in report.outputs[:4]] == ["", "x" * MAX_URL_CHARS, "", "https://h/0"]


H = "https://files.example.com"


def result_of(**lists: Any) -> tuple[list[tuple[str, str]], list[dict[str, Any]]]:
    """The kinds and addresses of the files in a `task_result`, and its other outputs."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    return [(each.kind, each.url.removeprefix(f"{H}/")) for each in report.outputs], list(report.objects)


ELEMENT = {"element_id": 829836802793406551, "element_name": "kangaroo", "status": "succeed"}


@pytest.mark.parametrize(
    ("lists", "files", "objects"),
    [
        ({"elements": [ELEMENT]}, [], [ELEMENT]),
        (
            {"voices": [{"voice_id": "829", "voice_name": "narrator", "trial_url": f"{H}/v.mp3"}]},
            [("audio", "v.mp3")],
            [{"voice_id": "829", "voice_name": "narrator"}],
        ),
        (
            {"images": [{"index": 0, "url_10": f"{H}/10", "url_2": f"{H}/2.png", "url_1": f"{H}/1.png"}]},
            [("image", "1.png"), ("image", "2.png"), ("image", "10")],
            [],
        ),
        ({"videos": [{"id": "v", "url": "", "watermark_url": f"{H}/w.mp4"}]}, [("video", "w.mp4")], []),
        (
            {"videos": [{"id": "v", "url": f"{H}/v.mp4", "session_id": "s"}]},
            [("video", "v.mp4")],
            [{"id": "v", "session_id": "s"}],
        ),
        ({"videos": [{"id": "v", "session_id": "s"}]}, [], [{"id": "v", "session_id": "s"}]),
        ({"session_id": "s", "face_data": [{"face_id": 1}]}, [], [{"face_id": 1}, {"session_id": "s"}]),
        ({"element": ELEMENT}, [], [ELEMENT]),
        ({"videos": {"url": f"{H}/v.mp4"}}, [("video", "v.mp4")], []),
        ({"images": [f"{H}/1.png", f"{H}/2.png"]}, [("image", "1.png"), ("image", "2.png")], []),
        ({"video": f"{H}/v.mp4"}, [("video", "v.mp4")], []),
        ({"videos": ["HTTPS://H/1"]}, [("video", "HTTPS://H/1")], []),
        ({"videos": [" https://h/a b"]}, [("video", "https://h/a b")], []),
        (
            {"videos": [{"url": f"{H}/v.mp4", "cover_url": f"{H}/c.png", "last_frame_url": f"{H}/l.png"}]},
            [("video", "v.mp4"), ("image", "l.png")],
            [],
        ),
        ({"videos": [{"cover_image_url": f"{H}/c.png"}]}, [("image", "c.png")], []),
        (
            {"videos": [{"url": f"{H}/v.mp4", "watermark_url": f"{H}/w.mp4", "audio_url": f"{H}/a.mp3"}]},
            [("video", "v.mp4"), ("watermark", "w.mp4"), ("audio", "a.mp3")],
            [],
        ),
        (
            {"videos": [{"url": f"{H}/v.mp4", "share_url": f"{H}/page", "input_image_url": f"{H}/i.png"}]},
            [("video", "v.mp4")],
            [],
        ),
        (
            {"elements": [{**ELEMENT, "input_image_url": f"{H}/i.png"}]},
            [],
            [{**ELEMENT, "input_image_url": f"{H}/i.png"}],
        ),
        ({"models": [{"glb": f"{H}/m.glb", "result_link": f"{H}/m"}]}, [("model", "m")], [{"glb": f"{H}/m.glb"}]),
        ({"videos": [{"id": "v", "url": ""}], "images": []}, [], []),
        ({"images": [], "progress": "100%", "meta": {"seed": 7}, "width": 64}, [], []),
        ({"captions": [{"text": "a kangaroo", "start": 0}]}, [], [{"text": "a kangaroo", "start": 0}]),
        (
            {"videos": [{"input_image_url": f"{H}/i.png", "origin_url": f"{H}/o.png"}]},
            [("image", "i.png"), ("image", "o.png")],
            [],
        ),
        ({"videos": [{"url": f"{H}/v.mp4", "extra_url": f"{H}/x"}]}, [("video", "v.mp4"), ("file", "x")], []),
        ({"images": [{"url_1": f"{H}/1.png", "url_wav": f"{H}/w"}]}, [("image", "w"), ("image", "1.png")], []),
        ({"video_url": f"{H}/x"}, [("file", "x")], []),
        ({"video": {"watermark_url": f"{H}/w.mp4"}}, [("video", "w.mp4")], []),
        ({"images": [{"picture": "https://[/x.png"}]}, [], []),
        ({"elements": [{"type": "t", "duration": 5}]}, [], []),
        ({"elements": [{}, {"index": 0, "status": "succeed", "element_id": "", "list": []}]}, [], []),
    ],
)
def test_a_result_is_files_and_other_outputs(
    lists: dict[str, Any], files: list[tuple[str, str]], objects: list[dict[str, Any]]
) -> None:
    """Files in any field, without covers beside them; elements, voices and sessions with Kling's names."""
    assert result_of(**lists) == (files, objects)


@pytest.mark.parametrize(
    ("lists", "has_results"),
    [
        ({"videos": [{"id": "v", "url": "", "session_id": "s"}]}, False),
        ({"video": {"id": "v", "session_id": "s"}}, False),
        ({"url": "", "session_id": "s"}, False),
        ({"videos": [{"url": ""}], "elements": [ELEMENT]}, False),
        ({"videos": [{"url": f"{H}/v.mp4", "session_id": "s"}]}, True),
        ({"videos": [], "elements": [ELEMENT]}, True),
        ({"elements": [{**ELEMENT, "url": ""}]}, True),
        ({"session_id": "s"}, True),
        ({"model_id": "kling-v1", "trace_id": "t", "videos": []}, False),
    ],
)
def test_a_file_whose_address_comes_late_is_awaited(lists: dict[str, Any], has_results: bool) -> None:
    """Whatever ids are beside it, such a result is not complete."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    assert report.has_results == has_results


@pytest.mark.parametrize(
    "output", [{"type": "video", "id": "v", "model_id": "m"}, {"url": "", "session_id": "s"}, {"model_id": "m"}]
)
def test_an_output_without_its_address_is_awaited(output: dict[str, Any]) -> None:
    """In the new standard, too; a relay's address beside it is that of the file."""
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [output]}))
    assert report is not None
    assert not report.has_results
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [output], "result_url": f"{H}/v.mp4"}))
    assert report is not None
    assert report.outputs == (Output("video", f"{H}/v.mp4"),)


def test_outputs_of_the_new_standard_are_told_apart_by_type() -> None:
    """An element and a voice are outputs; what a voice sounds like is a file."""
    element = {"type": "element", "id": "e", "name": "kangaroo", "references": [{"url": f"{H}/r.png"}]}
    voice = {"type": "voice", "id": "o", "name": "narrator", "url": f"{H}/v.mp3"}
    report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": [element, voice]}))
    assert report is not None
    assert report.outputs == (Output("audio", f"{H}/v.mp3", "o"),)
    assert report.objects == (element, {"type": "voice", "id": "o", "name": "narrator"})


def test_other_outputs_are_limited() -> None:
    """In number, size and depth; what fits of a large one is kept, so that its id is not lost."""
    _, objects = result_of(elements=[{"element_id": str(n)} for n in range(500)])
    assert len(objects) == MAX_OUTPUTS
    large = {"element_id": "e", "mask": "x" * MAX_OBJECT_CHARS, "deep": nested(MAX_DEPTH, list_of), "nul": "\0", "a": 1}
    assert result_of(elements=[large]) == ([], [{"element_id": "e", "a": 1}])
    many = [{"element_id": str(n), "text": "x" * 3000} for n in range(50)]
    _, objects = result_of(elements=many)
    assert 0 < sum(len(json.dumps(each)) for each in objects) <= MAX_OBJECTS_CHARS
    assert result_of(elements=[{"text": float("nan")}]) == ([], [])


def test_blanks_around_an_address_are_removed() -> None:
    """Inside it every byte stays."""
    images = [{"url": f"  {H}/a%20b c.png?x=1\n"}, {"url": " "}]
    assert result_of(images=images) == ([("image", "a%20b c.png?x=1"), ("image", "")], [])


def test_a_field_whose_name_is_endless_is_no_address() -> None:
    """A name of 80,000 characters, built to be searched for the words of an address for minutes, is not searched."""
    name = "url_" * 20_000 + "\n"
    body = {"task_id": "1", "task_status": "succeed", "task_result": {"videos": [{name: "https://h/a.mp4"}], name: "x"}}
    report = parse_callback(json.dumps(body).encode())
    assert report
    assert report.outputs == ()


A, B, W = f"{H}/a.png", f"{H}/b.png", f"{H}/w.png"


@pytest.mark.parametrize(
    ("lists", "files"),
    [
        ({"images": [{"url": A}, {"url": ""}]}, ["a.png", ""]),
        ({"images": [{"index": 1, "url": A}, {"index": 0}]}, ["", "a.png"]),
        ({"images": [{"url": A}, {"url": " "}, {"url": None}, {}]}, ["a.png", "", "", ""]),
        ({"images": [A, ""]}, ["a.png", ""]),
        (
            {"images": [{"url": "", "watermark_url": W}, {"url": B, "watermark_url": W}]},
            ["", "b.png", "w.png", "w.png"],
        ),
        (
            {"images": [{"url": A, "watermark_url": ""}, {"url": B, "watermark_url": W}]},
            ["a.png", "b.png", "", "w.png"],
        ),
        ({"images": [{"url_1": A, "url_2": "", "url_3": B, "url_4": ""}]}, ["a.png", "", "b.png", ""]),
        ({"audios": [{"url_mp3": "", "url_wav": B}]}, ["", "b.png"]),
        ({"audios": [{"mp3_url": A, "wav_url": ""}]}, ["a.png", ""]),
        ({"videos": [{"url": A}], "images": [{"url": ""}]}, ["a.png", ""]),
        ({"video": {"id": "v"}, "images": [A]}, ["", "a.png"]),
        ({"video": {"url": ""}, "images": [A]}, ["", "a.png"]),
    ],
)
def test_a_file_without_its_address_has_its_place(lists: dict[str, Any], files: list[str]) -> None:
    """Beside files that have theirs; the result is not complete."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    assert [each.url.removeprefix(f"{H}/") for each in report.outputs] == files
    assert (report.has_results, report.awaits_file, report.is_complete) == (True, True, False)


@pytest.mark.parametrize(
    "lists",
    [
        {"images": [{"url": A, "watermark_url": ""}, {"url": B, "watermark_url": ""}]},
        {"images": [{"url": A, "watermark_url": W, "watermark_text": ""}, {"url": B, "watermark_text": ""}]},
        {"images": [{"url": "", "watermark_url": W}]},
        {"audios": [{"url": A, "url_mp3": "", "url_wav": ""}]},
        {"audios": [{"url_mp3": A, "url_wav": B, "mp3_url": "", "wav_url": ""}]},
        {"videos": [{"url": A, "cover_url": "", "id": ""}], "url": "", "images": "", "audios": [], "video": {}},
        {"videos": [{"url": A}], "video": {"duration": "5"}, "image": {"width": 64}},
        {"videos": [{"url": A}], "elements": [{"element_id": 1, "url": ""}]},
        {"videos": [{"url": A}], "captions": [{"text": ""}]},
        {"videos": [{"url": A, "audio_url": B}, {"url": B, "audio_url": ""}]},
    ],
)
def test_an_empty_field_beside_a_file_is_not_awaited(lists: dict[str, Any]) -> None:
    """Relays send every field of every kind of result; most of them stay empty."""
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": lists}))
    assert report is not None
    assert "" not in [each.url for each in report.outputs]
    assert report.is_complete


def test_a_file_of_the_new_standard_has_its_place() -> None:
    """Of any type that is a file's; an empty text in place of the outputs is none."""
    for outputs, urls in (
        ([{"type": "image", "id": "i", "duration": 2}, {"type": "image", "url": B}], ["", B]),
        ([{"url": A}, {"url": ""}], [A, ""]),
        ([{"picture": A}, {"url": ""}], [A, ""]),
        ([{"url": A}, {"type": "element", "id": "e", "url": ""}], [A]),
    ):
        report = parse_callback(body({"id": "a", "status": "succeeded", "outputs": outputs}))
        assert report is not None
        assert [each.url for each in report.outputs] == urls
        assert report.awaits_file == ("" in urls)
    for result in ({"images": [A]}, {"elements": [ELEMENT]}):
        report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": result, "outputs": ""}))
        assert report is not None
        assert report.is_complete


def test_results_of_both_standards_are_read() -> None:
    """A relay may send a list as `task_result`, and `outputs` beside it."""
    record = {"task_id": "a", "task_status": "succeed", "task_result": [{"type": "image", "url": A}], "outputs": [B]}
    report = parse_callback(body(record))
    assert report is not None
    assert report.outputs == (Output("image", A), Output("image", B))


def test_other_files_keep_their_id() -> None:
    """Each record has one: files in other fields are listed after all results and copies, with the id of theirs."""
    videos = [
        {"id": n, "url": f"{H}/{n}.mp4", "audio_url": f"{H}/{n}.mp3", "track": f"{H}/{n}.wav"} for n in ("v", "w")
    ]
    report = parse_callback(body({"task_id": "a", "task_status": "succeed", "task_result": {"videos": videos}}))
    assert report is not None
    assert [(each.kind, each.url.removeprefix(f"{H}/"), each.id) for each in report.outputs] == [
        ("video", "v.mp4", "v"),
        ("video", "w.mp4", "w"),
        ("audio", "v.mp3", "v"),
        ("audio", "v.wav", "v"),
        ("audio", "w.mp3", "w"),
        ("audio", "w.wav", "w"),
    ]


def test_the_size_of_all_outputs_has_an_exact_limit() -> None:
    """In characters of their JSON; names of fields have a limit, too."""
    text = {"text": ""}
    size = len(json.dumps(text))
    items = [{"text": "x" * (MAX_OBJECTS_CHARS // 10 - size)}] * 10
    assert len(result_of(captions=items)[1]) == 10
    assert len(result_of(captions=[*items[1:], {"text": items[0]["text"] + "x"}])[1]) == 9
    name = "n" * MAX_NAME_CHARS
    assert result_of(captions=[{name: 1, f"{name}n": 2}]) == ([], [{name: 1}])
    long = "n" * (MAX_NAME_CHARS - 3) + "_id"
    assert result_of(**{long: 1, f"n{long}": 2}) == ([], [{long: 1}])


def test_records_and_their_fields_are_limited() -> None:
    """Fields and lists beyond the limit are not read."""
    fields = {f"field_{n}": n for n in range(MAX_RECORDS - 1)}
    assert result_of(videos=[{**fields, "url": A}])[0] == [("video", "a.png")]
    assert result_of(videos=[{**fields, "x": 1, "url": A}])[0] == []
    assert result_of(**fields, videos=[{"url": A}])[0] == [("video", "a.png")]
    assert result_of(**fields, x=1, videos=[{"url": A}])[0] == []
    assert result_of(captions=[{}] * (MAX_RECORDS - 1) + [{"text": "t"}])[1] == [{"text": "t"}]
    assert result_of(captions=[{}] * MAX_RECORDS + [{"text": "t"}])[1] == []


def test_one_output_has_an_exact_limit() -> None:
    """In characters of its JSON; a longer one keeps the fields that fit."""
    size = len(json.dumps({"text": ""}))
    fits = {"text": "x" * (MAX_OBJECT_CHARS - size)}
    assert result_of(captions=[fits])[1] == [fits]
    assert result_of(captions=[{**fits, "more": "y"}])[1] == [fits]
    assert result_of(captions=[{"text": fits["text"] + "x"}])[1] == []
