"""The page that creates tasks: every typed job, its checks, what it sends, and who may use it."""

import base64
import html
import json
import re
from collections.abc import Iterator, Mapping
from pathlib import Path
from typing import Any

import httpx
import pytest

from kling_callback.cli.commands.create import job_command
from kling_callback.jobs.catalog import JOBS
from kling_callback.jobs.images import MAX_BYTES
from kling_callback.jobs.job import Job
from kling_callback.jobs.untyped import prepare_job
from kling_callback.protocol.ids import new_id
from kling_receiver.web.dashboard.create.fields import STAND_IN
from kling_receiver.web.dashboard.create.form import models_of
from kling_sandbox import Sandbox
from tests.support.pages import Browser
from tests.support.receiver import Running, Start
from tests.support.sandbox import picture
from tests.support.submitting import finish
from tools.harness.submitting import poll_until, register

PAGE = "/dashboard/create"
NO_KLING = "http://127.0.0.1:9"
IMAGE, VIDEO = "https://example.com/a.png", "https://example.com/a.mp4"
MARKUP = "<script>document.title='owned'</script>\"'&"
ZOOM = '{"type": "simple", "config": {"zoom": 5}}'
MASKS = f'[{{"mask": "{IMAGE}", "trajectories": [{{"x": 0, "y": 0}}, {{"x": 9, "y": 9}}]}}]'
SHOTS = '[{"index": 1, "prompt": "a", "duration": "3"}, {"index": 2, "prompt": "b", "duration": "2"}]'
READY = re.compile(r'data-ready="([^"]*)"')

CASES: dict[str, list[dict[str, str]]] = {
    "text_to_image": [
        {"prompt": "a", "n": "2", "aspect_ratio": "16:9", "resolution": "2k", "watermark_info": "true"},
        {
            "prompt": "a",
            "negative_prompt": "b",
            "model_name": "kling-v3",
            "output_format": "png",
            "element_list": "7\nu_8",
        },
        {"prompt": "a", "model_name": "kling-v9", "n": "12"},
    ],
    "image_to_image": [
        {
            "prompt": "a",
            "image": IMAGE,
            "model_name": "kling-v3",
            "n": "1",
            "aspect_ratio": "auto",
            "element_list": "7",
        },
        {
            "prompt": "a",
            "image": IMAGE,
            "model_name": "kling-v2-1",
            "image_reference": "face",
            "image_fidelity": "0.25",
            "human_fidelity": "1",
            "resolution": "1k",
            "output_format": "jpg",
            "watermark_info": "false",
        },
    ],
    "text_to_video": [
        {
            "prompt": "a",
            "model_name": "kling-v2-6",
            "mode": "pro",
            "duration": "10",
            "sound": "on",
            "voice_list": "v_1",
        },
        {
            "model_name": "kling-v3",
            "multi_shot": "true",
            "shot_type": "customize",
            "multi_prompt": SHOTS,
            "element_list": "5",
        },
        {"prompt": "a", "negative_prompt": "b", "cfg_scale": "0.4", "camera_control": ZOOM, "aspect_ratio": "1:1"},
        {"prompt": "a", "model_name": "kling-3.0", "resolution": "4k", "audio": "native", "multi_shot": "false"},
        {"prompt": "a", "model_name": "kling-3.0-turbo", "duration": "15", "watermark_info": "true"},
        {"prompt": "a", "model_name": "kling-2.6", "duration": "10", "audio": "off"},
        {"prompt": "a", "model_name": "kling-2.5-turbo", "duration": "5", "aspect_ratio": "9:16"},
    ],
    "image_to_video": [
        {
            "image": IMAGE,
            "model_name": "kling-v1-6",
            "negative_prompt": "b",
            "cfg_scale": "1",
            "camera_control": ZOOM,
            "watermark_info": "true",
        },
        {
            "image": IMAGE,
            "model_name": "kling-v3",
            "multi_shot": "true",
            "shot_type": "customize",
            "multi_prompt": SHOTS,
            "sound": "on",
        },
        {"image": IMAGE, "model_name": "kling-3.0", "multi_shot": "false"},
        {
            "prompt": "a",
            "image": IMAGE,
            "image_tail": IMAGE,
            "model_name": "kling-v3",
            "mode": "pro",
            "element_list": "9",
        },
        {"image": IMAGE, "model_name": "kling-v1-6", "static_mask": IMAGE, "dynamic_masks": MASKS},
        {"image": IMAGE, "model_name": "kling-3.0", "last_frame": IMAGE, "element_list": "9\n10", "audio": "off"},
        {"prompt": "a", "first_frame": IMAGE, "model_name": "kling-3.0-turbo", "duration": "7"},
        {
            "image": IMAGE,
            "model_name": "kling-2.6",
            "voice_list": "v_1\nv_2",
            "audio": "native",
            "resolution": "1080p",
        },
        {"image": IMAGE, "model_name": "kling-2.5-turbo", "duration": "10"},
    ],
    "omni_video": [
        {
            "model_name": "kling-v3-omni",
            "multi_shot": "true",
            "shot_type": "customize",
            "multi_prompt": SHOTS,
            "mode": "pro",
            "sound": "off",
            "aspect_ratio": "9:16",
            "watermark_info": "true",
        },
        {"prompt": "a", "image_list": f"{IMAGE}\n{IMAGE}?2", "video_list": VIDEO, "element_list": "1", "duration": "9"},
        {
            "prompt": "a",
            "model_name": "kling-3.0-omni",
            "refer_image": IMAGE,
            "feature_video": VIDEO,
            "resolution": "720p",
            "audio": "off",
            "aspect_ratio": "16:9",
        },
        {
            "prompt": "a",
            "model_name": "kling-3.0-omni",
            "first_frame": IMAGE,
            "last_frame": IMAGE,
            "multi_shot": "true",
        },
        {"prompt": "a", "model_name": "kling-o1", "base_video": VIDEO, "audio": "original"},
    ],
    "motion_control": [
        {
            "image": IMAGE,
            "video": VIDEO,
            "character_orientation": "image",
            "model_name": "kling-3.0",
            "resolution": "1080p",
            "watermark_info": "false",
        },
        {"image": IMAGE, "video": VIDEO, "character_orientation": "video", "keep_original_sound": "no", "mode": "std"},
        {
            "image": IMAGE,
            "video": VIDEO,
            "character_orientation": "video",
            "model_name": "kling-3.0",
            "element_list": "4",
            "prompt": "a",
        },
        {"image": IMAGE, "video": VIDEO, "character_orientation": "image", "model_name": "kling-2.6", "audio": "off"},
    ],
}
"""What is typed, by the name of the job: at least once for each endpoint."""
EACH = [(job, typed) for job in JOBS for typed in CASES[job.name]]
LINES = ("element_list", "voice_list", "image_list", "refer_image", "video_list")


@pytest.fixture
def browser(shared: Running) -> Iterator[Browser]:
    """A browser that is signed in as a client, at the module's receiver."""
    with Browser(shared) as browser:
        yield browser.sign_in("client")


def form_data(job: str, typed: Mapping[str, Any]) -> dict[str, Any]:
    """The posted form. Own fields have their own names, parameters a prefix."""
    own = ("model_name", "other_model", "tags", "external_task_id", "more", "family", "body", "tried", "nonce", "shown")
    fields = {name if name in own else f"p.{name}": value for name, value in typed.items()}
    return {"job": job, "tried": "1", "nonce": "n", "shown": job, **fields}


def checked(browser: Browser, job: str, typed: Mapping[str, Any]) -> httpx.Response:
    """The answer to a check."""
    return browser.send("POST", f"{PAGE}/check", page=PAGE, data=form_data(job, typed)).raise_for_status()


def ready(answer: httpx.Response) -> Any:
    """The request that an answer lets the script send, and its key; None with problems."""
    found = READY.search(answer.text)
    return json.loads(html.unescape(found[1])) if found else None


def problems(answer: httpx.Response) -> dict[str, str]:
    """The problems in an answer, by field."""
    found = re.findall(r'id="error-([a-z0-9_-]+)"[^>]*>(.*?)</p>', answer.text, re.DOTALL)
    texts = {name: html.unescape(re.sub(r"<[^>]*>", "", text)).strip() for name, text in found}
    return {name: text for name, text in texts.items() if text}


def by_command_line(job: Job, typed: Mapping[str, str]) -> tuple[str, dict[str, Any]]:
    """The family and the body that `kling` sends for the same values."""
    arguments = []
    for name, text in typed.items():
        option = f"--{name.replace('_', '-')}"
        if name == "prompt":
            arguments.append(text)
        elif text in ("true", "false"):
            arguments.append(option if text == "true" else f"--no-{option[2:]}")
        else:
            for line in text.splitlines() if name in LINES else [text]:
                arguments += [option, line]
    context = job_command(job).make_context("x", arguments)
    names = {each.name for each in job.parameters}
    return prepare_job(job, {name: value for name, value in context.params.items() if name in names})


def in_order(request: dict[str, Any]) -> dict[str, Any]:
    """The request with its contents by type: on a command line their order is that of the options."""
    body = dict(request["body"])
    if "contents" in body:
        body["contents"] = sorted(body["contents"], key=lambda entry: str(entry["type"]))
    return {**request, "body": body}


def test_the_cases_cover_the_table() -> None:
    """Every job, every endpoint, every parameter."""
    assert {job.name for job in JOBS} == set(CASES)
    for job in JOBS:
        models = [typed.get("model_name", "") for typed in CASES[job.name]]
        assert {job.endpoint_of(model)[0].family for model in models} == {each.family for each in job.endpoints}
        names = {name for typed in CASES[job.name] for name in typed}
        assert {each.name for each in job.parameters} - names - {"model_name"} == set(), job.name


@pytest.mark.parametrize(("job", "typed"), EACH)
def test_what_is_sent_equals_the_command_line(
    browser: Browser, shared_gateway: Sandbox, job: Job, typed: dict[str, str]
) -> None:
    """For every endpoint of the table: the form has no problem, and Kling receives what `kling` would send."""
    answer = checked(browser, job.name, typed)
    assert problems(answer) == {}
    prepared = ready(answer)
    family, body = by_command_line(job, typed)
    assert in_order(prepared["request"]) == in_order({"family": family, "body": body})
    request = {**prepared["request"], "external_task_id": new_id()}
    sent = browser.send("POST", "/api/tasks", page=PAGE, json=request)
    assert sent.status_code == 201, sent.text
    known = poll_until(lambda: [each for each in shared_gateway.creates if request["external_task_id"] in str(each)])
    assert body.get("prompt", "") in str(known[0])


@pytest.mark.parametrize("job", JOBS, ids=lambda job: job.name)
def test_every_parameter_of_every_model_has_a_labelled_field(browser: Browser, job: Job) -> None:
    """With a hint and a place for problems."""
    for model in [model for _, models in models_of(job) for model in models]:
        data = form_data(job.name, {"model_name": model})
        page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status().text
        named = set(re.findall(r'name="p\.([a-z_]+)"', page)) | set(re.findall(r'data-name="p\.([a-z_]+)"', page))
        endpoint = job.endpoint_of(model)[0]
        aliases = {"first_frame"} if endpoint.find("first_frame") and endpoint.find("image") else set()
        assert named == {each.name for each in endpoint.parameters} - {"model_name"} - aliases
        for name in named:
            assert (
                page.count(f'id="help-{name}"') == page.count(f'id="error-{name}"') == page.count(f'id="f-{name}"') == 1
            )
        ids = re.findall(r' id="([^"]+)"', page)
        assert len(ids) == len(set(ids))
        assert not re.search(r"<script|\bstyle=|\bon[a-z]+=", page)


def test_all_problems_are_named_at_once_beside_their_fields(browser: Browser) -> None:
    """Those of the client's table and those of the API; a replaced parameter names its replacement."""
    typed = {
        "model_name": "kling-v3",
        "resolution": "720p",
        "duration": "99",
        "cfg_scale": "much",
        "camera_control": "{x",
        "tags": "a, " + "y" * 300,
        "external_task_id": "a b",
        "more": "[1]",
        "mode": "8k",
    }
    answer = checked(browser, "text_to_video", typed)
    found = problems(answer)
    assert ready(answer) is None
    assert found["prompt"].startswith("Is missing.")
    assert found["resolution"] == "kling-v3 has none. Use mode (std is 720p, pro is 1080p)."
    assert "from 3 to 15" in found["duration"]
    assert found["cfg_scale"] == "Must be a number from 0 to 1."
    assert found["camera_control"].startswith("Is not valid JSON")
    assert found["mode"] == "Must be std or pro or 4k."
    assert found["more"] == "Must be a JSON object."
    assert "at most 100 characters" in found["tags"]
    assert "is not a task's id" in found["external_task_id"]
    assert f"{len(found)} problems to fix" in answer.text


def test_what_is_missing_is_named_only_when_it_is_sent(browser: Browser) -> None:
    """A form that nobody has filled in yet shows no problem, but a price."""
    answer = checked(browser, "text_to_image", {"model_name": "kling-v3", "tried": ""})
    assert problems(answer) == {}
    assert ready(answer) is None
    assert "0.028 USD" in answer.text
    again = checked(browser, "text_to_image", {"model_name": "kling-v3"})
    assert problems(again)["prompt"].startswith("Is missing.")


@pytest.mark.parametrize(
    ("job", "typed", "price"),
    [
        ("text_to_image", {"prompt": "a", "model_name": "kling-v3", "n": "3"}, "0.084 USD"),
        ("text_to_video", {"model_name": "kling-v3", "mode": "pro", "duration": "10"}, "1.12 USD"),
        ("text_to_video", {"prompt": "x" * 9000, "model_name": "kling-3.0", "resolution": "4k"}, "2.1 USD"),
        ("motion_control", {"model_name": "kling-v3"}, "per second"),
        ("text_to_image", {"prompt": "a", "model_name": "kling-v2"}, "No list price is known for kling-v2 at images"),
        ("text_to_image", {"prompt": "a", "model_name": ""}, "images/generations without a model"),
        ("other", {"family": "videos/effects", "body": "{}"}, "Price unknown."),
    ],
)
def test_the_price_follows_the_fields(browser: Browser, job: str, typed: dict[str, str], price: str) -> None:
    """Also while something else is missing or wrong; an unknown one says so."""
    assert price in html.unescape(checked(browser, job, typed).text)


def test_no_text_becomes_markup(browser: Browser) -> None:
    """Whatever is typed, in any field, also where its value is not one of the choices."""
    for job in JOBS:
        names = {each.name for each in job.parameters} - {"model_name"}
        own = {"tags": MARKUP, "external_task_id": MARKUP, "more": MARKUP, "model_name": "other", "other_model": MARKUP}
        for path in ("check", "form"):
            data = form_data(job.name, {**dict.fromkeys(names, MARKUP), **own})
            page = browser.send("POST", f"{PAGE}/{path}", page=PAGE, data=data).raise_for_status().text
            assert "<script" not in page
            assert "&lt;script&gt;" in page
    for path in ("check", "form"):
        data = form_data("other", {"family": MARKUP, "body": MARKUP})
        assert "<script" not in browser.send("POST", f"{PAGE}/{path}", page=PAGE, data=data).raise_for_status().text


def test_another_job_keeps_what_fits(browser: Browser) -> None:
    """The prompt, the image and the tags; neither a value that it refuses nor a model that it does not have."""
    chosen = f"{STAND_IN}{'0' * 64}"
    typed = {"prompt": "a cat", "image": chosen, "resolution": "2k", "tags": "t1", "model_name": "kling-v2-1"}
    data = {**form_data("image_to_video", typed), "shown": "image_to_image"}
    page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status().text
    assert "a cat" in page
    assert page.count(chosen) == 1
    assert 'value="t1"' in page
    assert "<option selected>kling-v2-1</option>" in page
    assert "p.resolution" not in page
    data = {**form_data("motion_control", {**typed, "model_name": "kling-3.0-turbo"}), "shown": "image_to_video"}
    page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status().text
    assert "<option selected>kling-v3</option>" in page


def test_another_model_keeps_what_it_lacks_and_says_what_replaces_it(browser: Browser) -> None:
    """Nothing that was typed disappears."""
    data = form_data("image_to_video", {"model_name": "kling-3.0", "mode": "pro", "image": IMAGE, "tried": ""})
    page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status()
    assert problems(page) == {"mode": "kling-3.0 has none. Use resolution (std is 720p, pro is 1080p)."}
    assert 'name="p.mode" value="pro" checked' in page.text
    assert "p.sound" not in page.text


def test_a_model_that_the_table_does_not_have(browser: Browser) -> None:
    """Its name is typed, and sent as it is."""
    data = form_data("text_to_image", {"model_name": "other", "other_model": ""})
    page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status().text
    assert "data-other-model>" in page
    typed = {"prompt": "a", "model_name": "other", "other_model": "kling-v9", "more": '{"style": {"a": 1}}'}
    assert ready(checked(browser, "text_to_image", typed))["request"]["body"] == {
        "prompt": "a",
        "model_name": "kling-v9",
        "style": {"a": 1},
    }


def test_any_other_job(browser: Browser) -> None:
    """By its path and its parameters, checked as `kling create` does."""
    answer = checked(browser, "other", {"family": "videos/effects", "body": '{"effect_scene": "squish"}'})
    assert ready(answer)["request"] == {"family": "videos/effects", "body": {"effect_scene": "squish"}}
    found = problems(checked(browser, "other", {"family": "a b", "body": "{"}))
    assert "must be a path" in found["family"]
    assert found["body"].startswith("Is not valid JSON")


@pytest.mark.parametrize("name", ["/etc/hostname", "x.png", "kling.db", "file:///etc/passwd", "a/b.jpg"])
def test_no_text_names_a_file_of_the_receiver(
    browser: Browser, name: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """Neither where an image is, nor in other parameters; nothing tells whether the file exists."""
    monkeypatch.chdir(tmp_path)
    Path("x.png").write_bytes(base64.b64decode(picture(300, 300)))
    Path("kling.db").write_bytes(base64.b64decode(picture(300, 300)))
    cases: list[tuple[str, dict[str, str]]] = [
        ("image_to_video", {"prompt": "a", "image": name, "image_tail": IMAGE}),
        ("image_to_video", {"image": IMAGE, "dynamic_masks": MASKS.replace(IMAGE, name)}),
        ("omni_video", {"prompt": "a", "image_list": f'{{"image_url": "{name}", "type": "first_frame"}}'}),
        ("omni_video", {"prompt": "a", "model_name": "kling-3.0-omni", "refer_image": name, "aspect_ratio": "1:1"}),
    ]
    for job, typed in cases:
        answer = checked(browser, job, typed)
        assert ready(answer) is None, typed
        assert "is neither a URL nor base64" in " ".join(problems(answer).values()).replace("Is", "is"), typed
    more = {"prompt": "a", "more": f'{{"scene_image": "{name}"}}'}
    answer = checked(browser, "text_to_image", more)
    assert picture(300, 300) not in answer.text
    if ready(answer):
        assert ready(answer)["request"]["body"]["scene_image"] == name


def test_an_image_is_checked_when_it_is_chosen(browser: Browser) -> None:
    """By the rules of the client, with its messages; what stands for it names its content."""

    def send(content: bytes, limit: int = MAX_BYTES) -> Any:
        answer = browser.send("POST", f"{PAGE}/image?max={limit}", page=PAGE, content=content)
        return answer.raise_for_status().json()

    good = base64.b64decode(picture(300, 400))
    value = send(good)["value"]
    assert value.startswith(STAND_IN)
    assert send(good)["value"] == value
    assert send(base64.b64decode(picture(300, 400, "JPEG")))["value"] != value
    assert send(b"GIF89a")["problem"] == "is neither a JPEG nor a PNG."
    assert "both sides need at least 300" in send(base64.b64decode(picture(200, 400)))["problem"]
    assert "at most 10,485,760 (10 MB)" in send(good + b"\0" * MAX_BYTES)["problem"]


def test_the_script_gets_the_limits_from_the_page(browser: Browser) -> None:
    """50 MB for a model of the new standard."""
    for model, limit in (("kling-v3", MAX_BYTES), ("kling-3.0", 5 * MAX_BYTES)):
        data = form_data("image_to_video", {"model_name": model})
        page = browser.send("POST", f"{PAGE}/form", page=PAGE, data=data).raise_for_status().text
        assert f'data-max-bytes="{limit}"' in page


def test_a_double_click_pays_once(browser: Browser, shared_gateway: Sandbox) -> None:
    """The key is the same for the same form, and another one for another form or other values."""
    typed = {"prompt": f"once {new_id()}", "tags": "a, b"}
    first, second = (ready(checked(browser, "text_to_image", typed)) for _ in range(2))
    assert first == second
    headers = {"Idempotency-Key": first["key"]}
    answers = [browser.send("POST", "/api/tasks", page=PAGE, json=first["request"], headers=headers) for _ in range(2)]
    assert [answer.status_code for answer in answers] == [201, 200]
    assert answers[0].json()["id"] == answers[1].json()["id"]
    assert answers[0].json()["tags"] == ["a", "b"]
    finish(browser.running, answers[0].json()["id"])
    assert len([each for each in shared_gateway.creates if typed["prompt"] in str(each)]) == 1
    keys = {first["key"]}
    keys.add(ready(checked(browser, "text_to_image", {**typed, "nonce": "m"}))["key"])
    keys.add(ready(checked(browser, "text_to_image", {**typed, "n": "2"}))["key"])
    assert len(keys) == 3


def test_each_page_has_a_key_of_its_own(browser: Browser) -> None:
    """So that the same prompt may be paid twice on purpose."""
    pages = [html.unescape(browser.get(PAGE).text) for _ in range(2)]
    nonces = {re.findall(r'"nonce": "([\w-]{20,})"', page)[0] for page in pages}
    assert len(nonces) == 2


def test_a_lower_role_gets_no_page(shared: Running) -> None:
    """Nor a link to it, nor its checks, and the API refuses its task."""
    with Browser(shared) as browser:
        browser.sign_in("read")
        assert "dashboard/create" not in browser.get("/").text
        assert browser.get(PAGE).status_code == 403
        for path in ("check", "form", "image"):
            assert browser.send("POST", f"{PAGE}/{path}", page=PAGE, data={"job": "text_to_image"}).status_code == 403
        assert browser.get(f"{PAGE}/files").status_code == 403
        request = {"family": "images/generations", "body": {"prompt": "a"}}
        assert browser.send("POST", "/api/tasks", page=PAGE, json=request).status_code == 403


def test_checks_are_for_the_pages_of_this_receiver(browser: Browser) -> None:
    """And for one form of limited length."""
    other = {"Sec-Fetch-Site": "cross-site", "Origin": "https://evil.example"}
    for path in ("check", "form", "image"):
        answer = browser.send("POST", f"{PAGE}/{path}", page=PAGE, data={"job": "text_to_image"}, headers=other)
        assert answer.status_code == 403
    data = form_data("text_to_image", {"prompt": "x" * 1_000_001})
    assert browser.send("POST", f"{PAGE}/check", page=PAGE, data=data).status_code == 413
    many = "&".join(f"p.x{number}=1" for number in range(501))
    assert browser.send("POST", f"{PAGE}/check", page=PAGE, content=many.encode()).status_code == 422
    for more in (
        '{"a":' * 2000 + "1" + "}" * 2000,
        '{"\\ud800rompt": 1, "apsect_ratio\\udfff": 1}',
        '{"model_name": "\\ud800"}',
        "{" + ",".join(f'"promptt{number}": 1' for number in range(20_000)) + "}",
        '{"a": NaN}',
        '{"model_name": 1, "image": {"a": []}}',
    ):
        answer = checked(browser, "text_to_image", {"prompt": "a", "more": more})
        assert ready(answer) is None, more[:40]
        assert "to fix above" in answer.text


def test_a_receiver_without_a_key_says_so_first(start: Start) -> None:
    """There is nothing to type in vain."""
    running = start(api_base=NO_KLING, api_key="")
    with Browser(running) as browser:
        page = html.unescape(browser.sign_in().get(PAGE).text)
    assert "has no key for Kling" in page
    assert "Set KLING_API_KEY" in page
    assert "<textarea" not in page


def test_a_full_queue_is_said_before_anything_is_typed(start: Start, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what to do about it."""
    running = start(api_base=NO_KLING)
    with Browser(running) as browser:
        browser.sign_in()
        assert "wait already" not in browser.get(PAGE).text
        monkeypatch.setattr("kling_receiver.tasks.submission.MAX_QUEUED", 0)
        page = browser.get(PAGE).text
    assert "0 tasks wait already, at most 0." in page
    assert "Wait until some are sent, or cancel some" in page


@pytest.mark.parametrize(("job", "typed"), EACH)
def test_run_again_fills_the_form_from_the_stored_request(browser: Browser, job: Job, typed: dict[str, str]) -> None:
    """The form that `?from=` shows sends the same request once more."""
    request = ready(checked(browser, job.name, {**typed, "tags": "t1"}))["request"]
    sent = browser.send("POST", "/api/tasks", page=PAGE, json={**request, "external_task_id": new_id()})
    page = browser.get(f"{PAGE}?from={sent.json()['id']}").raise_for_status().text
    again = fields_of(page)
    assert again["job"] == [job.name]
    answer = browser.send("POST", f"{PAGE}/check", page=PAGE, data={**again, "tried": "1"}).raise_for_status()
    assert problems(answer) == {}
    assert ready(answer)["request"] == request


def fields_of(page: str) -> dict[str, list[str]]:
    """What a browser would post of the page's form."""
    fields: dict[str, list[str]] = {}
    form = page[page.index('<form id="create"') : page.index('<dialog id="create-files"')]
    for tag, attributes, content in re.findall(r"<(input|select|textarea)\b([^>]*)>(?:(.*?)</\1>)?", form, re.DOTALL):
        name = re.search(r'\bname="([^"]*)"', attributes)
        if not name or ('type="radio"' in attributes and " checked" not in attributes):
            continue
        value = re.search(r'\bvalue="([^"]*)"', attributes)
        text = value[1] if value else ""
        if tag == "textarea":
            text = content.removeprefix("\n")
        elif tag == "select":
            options = re.findall(r'<option(?: value="([^"]*)")?( selected)?>([^<]*)</option>', content)
            chosen = [
                given or ("" if "default" in label.lower() else label) for given, is_on, label in options if is_on
            ]
            text = chosen[0] if chosen else ""
        fields.setdefault(name[1], []).append(html.unescape(text))
    return fields


def test_run_again_names_what_was_not_stored(browser: Browser) -> None:
    """Images and long texts are to be given again; the rest is filled in."""
    task_id = new_id()
    stored = {"prompt": "a cat", "image": picture(300, 300), "model_name": "kling-v3", "n": 2, "style": MARKUP}
    register(browser.running, task_id, request=stored, tags=["night"])
    page = html.unescape(browser.get(f"{PAGE}?from={task_id}").text)
    assert "Not stored with the task, so give it again: image." in page
    fields = fields_of(browser.get(f"{PAGE}?from={task_id}").text)
    assert (fields["job"], fields["p.prompt"], fields["p.n"]) == (["image_to_image"], ["a cat"], ["2"])
    assert fields["p.image"] == [""]
    assert json.loads(fields["more"][0]) == {"style": MARKUP}
    assert fields["tags"] == ["night"]
    register(browser.running, other := new_id(), family="videos/effects", request={"effect_scene": "squish"})
    fields = fields_of(browser.get(f"{PAGE}?from={other}").text)
    assert (fields["job"], fields["family"]) == (["other"], ["videos/effects"])
    assert json.loads(fields["body"][0]) == {"effect_scene": "squish"}
    assert browser.get(f"{PAGE}?from=nothing").status_code == 404


@pytest.mark.parametrize(
    ("family", "job", "model"),
    [
        ("videos/omni-video", "omni_video", "kling-v3-omni"),
        ("/text-to-video/kling-2.6", "text_to_video", "kling-2.6"),
        ("/image-to-video/kling-9.9", "image_to_video", "kling-9.9"),
        ("images/generations", "text_to_image", "kling-v3"),
    ],
)
def test_the_form_of_a_family(browser: Browser, family: str, job: str, model: str) -> None:
    """By the address, as other pages link to it."""
    fields = fields_of(browser.get(f"{PAGE}?family={family}").text)
    assert fields["job"] == [job]
    assert model in (fields["model_name"][0], fields["other_model"][0])


def test_files_of_earlier_tasks(running: Running) -> None:
    """The newest images, to take from the API, and videos with an address at which Kling can load them."""
    with Browser(running) as browser:
        browser.sign_in("client")
        assert "No videos yet" in browser.get(f"{PAGE}/files?kind=video").text
        request = {"family": "images/generations", "body": {"prompt": MARKUP, "n": 2}}
        task_id = browser.send("POST", "/api/tasks", page=PAGE, json=request).json()["id"]
        finish(running, task_id)
        page = browser.get(f"{PAGE}/files?kind=image").text
        assert f'data-file="../api/tasks/{task_id}/results/1"' in page
        assert "<script" not in page
        assert browser.get(f"/api/tasks/{task_id}/results/1").status_code == 200
