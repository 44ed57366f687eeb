// The form that creates tasks: images by choosing, dropping and pasting, problems beside their fields, the submission.
"use strict";
(() => {
  const form = document.querySelector("#create");
  if (!form) return;
  const { call, toast } = window.kling;
  const $ = (selector, within = form) => within.querySelector(selector);
  const $$ = (selector, within = form) => [...within.querySelectorAll(selector)];
  const send = $("#create-send"), refused = $("#create-refused");
  const files = new Map(); // images that were chosen, by what stands for them in the form
  const changed = (element) => element.dispatchEvent(new Event("input", { bubbles: true }));

  // Images
  const show = (item) => {
    const input = $("input", item), file = files.get(input.value);
    if (item.childElementCount > 1) return;
    if (!file) { item.remove(); return; }
    const image = document.createElement("img"), row = document.createElement("div");
    const name = document.createElement("span"), remove = document.createElement("button");
    image.src = file.preview ??= URL.createObjectURL(file.blob);
    image.alt = `Preview of ${file.name}`;
    name.className = "clip";
    name.textContent = file.name;
    remove.type = "button";
    remove.className = "button quiet";
    remove.textContent = "Remove";
    remove.setAttribute("aria-label", `Remove ${file.name}`);
    remove.addEventListener("click", () => {
      const field = item.closest("[data-images]");
      item.remove();
      $("input[type=file]", field).focus();
      changed(field);
    });
    row.className = "row";
    row.append(name, remove);
    item.append(image, row);
  };
  const problemOf = (field, text) => {
    const place = $(".image-problem", field);
    place.textContent = text;
    place.hidden = !text;
  };
  const megabytes = (bytes) => (bytes / 1048576).toFixed(1);
  const add = async (field, blob, name) => {
    const max = Number(field.dataset.maxBytes), many = Number(field.dataset.images) > 1;
    problemOf(field, "");
    if (blob.size > max) {
      problemOf(field, `${name} has ${megabytes(blob.size)} MB; at most ${megabytes(max)} MB. Make it smaller, or give a URL.`);
      return;
    }
    field.setAttribute("aria-busy", "true");
    let answer;
    try {
      const response = await fetch(`${form.dataset.imageUrl}?max=${max}`, { method: "POST", credentials: "same-origin", body: blob });
      answer = await response.json();
    } catch {
      answer = { problem: "could not be checked. Check that the receiver runs, and choose it again." };
    } finally {
      field.removeAttribute("aria-busy");
    }
    if (answer.problem) { problemOf(field, `${name} ${answer.problem}`); return; }
    const present = document.contains(field) ? field : $(`[data-field="${CSS.escape(field.dataset.field)}"]`);
    if (!present) return;
    files.set(answer.value, { blob, name });
    const list = $(".image-items", present), item = document.createElement("li"), input = document.createElement("input");
    if (!many) {
      list.replaceChildren();
      $("input[type=text]", present).value = "";
    }
    input.type = "hidden";
    input.name = present.dataset.name;
    input.value = answer.value;
    item.className = "image-item";
    item.append(input);
    list.append(item);
    show(item);
    changed(present);
  };
  const addAll = async (field, blobs) => {
    const wanted = Number(field.dataset.images) > 1 ? blobs : blobs.slice(0, 1);
    for (const blob of wanted) await add(field, blob, blob.name || "The image");
  };
  const nextField = (target) => {
    const fields = $$("[data-images]");
    return target?.closest?.("[data-images]")
      || fields.find((field) => !$(".image-item", field) && field.offsetParent) || fields[0];
  };
  form.addEventListener("change", (event) => {
    if (event.target.type !== "file") return;
    addAll(event.target.closest("[data-images]"), [...event.target.files]);
    event.target.value = "";
  });
  const over = (field) => $$(".drop").forEach((each) => each.classList.toggle("over", each === field?.querySelector(".drop")));
  const isDrag = (event) => event.dataTransfer?.types.includes("Files") || event.target.closest?.("[data-images]");
  document.addEventListener("dragover", (event) => {
    if (!isDrag(event)) return;
    event.preventDefault();
    over(nextField(event.target));
  });
  document.addEventListener("dragleave", (event) => { if (!event.relatedTarget) over(null); });
  document.addEventListener("drop", (event) => {
    over(null);
    if (!isDrag(event)) return;
    event.preventDefault(); // the browser would leave the page for the file
    const field = nextField(event.target);
    if (!field) return;
    const dropped = [...event.dataTransfer.files];
    if (dropped.length) { addAll(field, dropped); return; }
    const url = event.dataTransfer.getData("text/uri-list") || event.dataTransfer.getData("text/plain");
    const place = $("input[type=text], textarea", field);
    place.value = place.matches("textarea") ? `${place.value.trim()}\n${url}`.trim() : url;
    changed(place);
  });
  document.addEventListener("paste", (event) => {
    const pasted = [...event.clipboardData.files].filter((file) => file.type.startsWith("image/"));
    const field = nextField(event.target);
    if (!pasted.length || !field) return;
    event.preventDefault();
    addAll(field, pasted);
  });

  // Files of earlier tasks
  const dialog = document.querySelector("#create-files");
  let picking = null;
  form.addEventListener("click", (event) => {
    const button = event.target.closest("[data-pick]");
    if (!button) return;
    picking = button;
    document.querySelector("#create-files-body").textContent = "Loading …";
    dialog.showModal();
    htmx.ajax("GET", `${form.dataset.filesUrl}?kind=${button.dataset.pick}`, "#create-files-body");
  });
  dialog.addEventListener("click", async (event) => {
    const choice = event.target.closest("[data-file]");
    if (!choice || !picking) return;
    dialog.close();
    if (picking.dataset.pick === "video") {
      const input = document.getElementById(picking.dataset.for);
      input.value = choice.dataset.url;
      input.focus();
      changed(input);
      return;
    }
    const field = picking.closest("[data-images]");
    try {
      const response = await fetch(choice.dataset.file, { credentials: "same-origin" });
      if (!response.ok) throw new Error();
      await add(field, await response.blob(), choice.textContent.trim());
    } catch {
      problemOf(field, "The file of that task could not be loaded. Choose another one.");
    }
  });

  // Problems
  const mark = () => {
    $$(".field-error").forEach((error) => {
      const name = error.id.replace("error-", ""), invalid = Boolean(error.textContent.trim());
      $$(`[aria-describedby~="${CSS.escape(error.id)}"]`).forEach((each) => {
        if (!each.matches("fieldset, [type=file]")) each.setAttribute("aria-invalid", String(invalid));
      });
      if (invalid && $("input[name=tried]").value) $(`#${CSS.escape(`f-${name}`)}`)?.closest("details")?.setAttribute("open", "");
    });
  };
  const focusFirst = () => {
    const first = $$(".field-error").find((error) => error.textContent.trim());
    const control = first && $(`#${CSS.escape(first.id.replace("error-", "f-"))}`);
    (control || send).focus();
    control?.closest(".field")?.scrollIntoView({ block: "center" });
  };
  const isBusy = (field) => field.getAttribute("aria-busy") === "true";

  // The submission: the request of the check, with the images in their places
  const base64 = (blob) => new Promise((resolve, reject) => {
    const reader = new FileReader();
    reader.onload = () => resolve(reader.result.slice(reader.result.indexOf(",") + 1));
    reader.onerror = () => reject({ message: "An image cannot be read any more.", hint: "Choose it again." });
    reader.readAsDataURL(blob);
  });
  const withImages = async (value) => {
    if (typeof value === "string") return files.has(value) ? base64(files.get(value).blob) : value;
    if (Array.isArray(value)) return Promise.all(value.map(withImages));
    if (value === null || typeof value !== "object") return value;
    const entries = Object.entries(value).map(async ([name, each]) => [name, await withImages(each)]);
    return Object.fromEntries(await Promise.all(entries));
  };
  const refuse = (error) => {
    refused.textContent = `${error.message || error} ${error.hint || ""}`;
    refused.hidden = false;
    refused.focus();
  };
  let sending = false, changing = 0;
  const setSending = (is) => {
    sending = is;
    send.toggleAttribute("disabled", is);
    send.textContent = is ? "Creating …" : "Create";
  };
  const submit = async (ready) => {
    try {
      const request = { ...ready.request, body: await withImages(ready.request.body) };
      const task = await call("POST /api/tasks", request, { "Idempotency-Key": ready.key });
      location.href = form.dataset.taskUrl + encodeURIComponent(task.id);
    } catch (error) {
      setSending(false);
      refuse(error);
    }
  };
  form.addEventListener("htmx:configRequest", (event) => {
    if (sending) { event.preventDefault(); return; }
    if (event.target !== form) { // another job or model: its answer has the checks too
      changing += 1;
      htmx.trigger(form, "htmx:abort");
      return;
    }
    if (changing) { event.preventDefault(); return; }
    if (event.detail.triggeringEvent?.type !== "submit") return;
    if ($$("[data-images]").some(isBusy)) { event.preventDefault(); toast("An image is still being checked.", "Try again in a moment."); return; }
    refused.hidden = true;
    $("input[name=tried]").value = "1";
    event.detail.parameters.tried = "1";
    setSending(true);
  });
  document.body.addEventListener("htmx:afterRequest", (event) => {
    const { requestConfig, xhr, successful } = event.detail;
    if (requestConfig?.target?.id === "create-form") changing -= 1;
    if (requestConfig?.elt !== form) return;
    mark();
    const ready = $("[data-ready]");
    if (requestConfig.triggeringEvent?.type !== "submit") return;
    if (successful && ready) { submit(JSON.parse(ready.dataset.ready)); return; }
    setSending(false);
    if (successful) focusFirst();
    else refuse({ message: xhr.status === 413 ? "The form is too long." : "The form could not be checked.", hint: xhr.status === 413 ? "Choose images as files or by URL." : "Check that the receiver runs, then try again." });
  });
  const changeFailed = (event) => {
    if (event.detail.requestConfig?.target?.id !== "create-form") return;
    $(`[name=job][value="${CSS.escape($("[name=shown]").value)}"]`).checked = true;
    toast("The form could not be changed.", "Check that the receiver runs, then try again.", true);
  };
  document.body.addEventListener("htmx:sendError", changeFailed);
  document.body.addEventListener("htmx:responseError", changeFailed);
  document.body.addEventListener("htmx:afterSettle", () => { $$(".image-item").forEach(show); mark(); });
  form.addEventListener("input", (event) => {
    if (event.target.id === "f-model_name") $("[data-other-model]").hidden = event.target.value !== "other";
  });
  addEventListener("pageshow", (event) => { if (event.persisted) location.reload(); });
  $$(".image-item").forEach(show);
  mark();
})();
