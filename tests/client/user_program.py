"""A program as users write them: it is type-checked in strict mode, and never run."""

import asyncio
from pathlib import Path
from typing import assert_type

from kling_callback import AsyncKling, AsyncTask, Event, File, Kling, Result, Task


def report(event: Event) -> None:
    print(event.id, event.type, event.task["status"])


def blocking() -> None:
    with Kling(api_key="sk-1", receiver_url="https://kling.example.com") as kling:
        task = kling.text_to_image("a kangaroo", model_name="kling-v3", n=2, aspect_ratio="16:9", tags=["spring"])
        assert_type(task, Task)
        result = task.wait(timeout=600, on_event=report)
        assert_type(result, Result)
        assert_type(result.images[0], File)
        saved: Path = result.images[0].save("kangaroo.png")
        night = kling.image_to_image("at night", image=saved, image_fidelity=0.7, a_new_one="on")
        moves = kling.image_to_video("it waves", night.wait().images[0], model_name="kling-3.0", resolution="1080p")
        dance = kling.motion_control(saved, moves.wait().videos[0], character_orientation="video")
        edit = kling.omni_video("in winter", base_video=dance.wait().videos[0], model_name="kling-3.0-omni")
        effect = kling.create("videos/effects", {"effect_scene": "squish", "input": {"image": saved}}, hook="https://h")
        print(
            edit.id, effect.outcome, kling.text_to_video("x", duration=5).task_id, [each.id for each in kling.tasks()]
        )


async def awaited() -> None:
    async with AsyncKling() as kling:
        task = await kling.text_to_video("a kangaroo", duration="5", mode="pro", external_task_id="order-42")
        assert_type(task, AsyncTask)
        first, second = await asyncio.gather(kling.text_to_image("x"), kling.create("videos/effects", {}))
        print((await first.wait(60)).images[0].href, second.data.get("status"))
        async for event in task.events():
            report(event)
        content: bytes = await (await task.wait()).videos[0].read()
        print(len(content))
