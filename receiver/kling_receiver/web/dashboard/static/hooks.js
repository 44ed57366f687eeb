// What the pages of hooks need of a script: dialogs, secrets that are shown once, tests, and the form of a hook.
"use strict";
(() => {
  const { call, showError } = window.kling;
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];

  // Dialogs
  document.addEventListener("click", (event) => {
    const opener = event.target.closest("[data-open-dialog]");
    if (opener) document.getElementById(opener.dataset.openDialog)?.showModal();
    if (event.target.closest("[data-close-dialog]")) event.target.closest("dialog").close();
  });
  $$("dialog[data-keep-open]").forEach((dialog) => dialog.addEventListener("cancel", (event) => event.preventDefault()));

  // A secret is in the page only while its dialog is open
  const showSecret = (secret, after = () => {}) => {
    const dialog = $("#secret-dialog"), text = $("#secret-text");
    text.textContent = secret;
    dialog.addEventListener("close", () => { text.textContent = ""; after(); }, { once: true });
    dialog.showModal();
  };

  const add = (parent, name, className, text) => {
    const element = document.createElement(name);
    element.className = className;
    element.textContent = text;
    parent.append(element);
    return element;
  };
  const showTest = (outcome) => {
    const box = $("#test-result");
    box.replaceChildren();
    const what = outcome.delivered ? "✓ Delivered" : "✕ Not delivered";
    const status = outcome.response_status === null ? "no response" : `response ${outcome.response_status}`;
    add(box, "p", outcome.delivered ? "good" : "bad", `${what}: ${status}, after ${outcome.duration_ms} ms`);
    if (outcome.error) add(box, "p", "", outcome.error);
    if (outcome.response_body) {
      const body = add(box, "pre", "", outcome.response_body.slice(0, 2000));
      body.dir = "auto";
      body.tabIndex = 0;
      body.setAttribute("aria-label", "Start of the response's body");
    }
  };
  const formats = $("[data-test] [name=format]");
  const limitTests = () => { // a hook in Kling's format receives few types of events
    const types = $("[data-test] [name=event]");
    [...types.options].forEach((each) => { each.disabled = formats.value === "kling" && !("kling" in each.dataset); });
    if (types.selectedOptions[0]?.disabled) types.selectedIndex = 0;
  };
  formats?.addEventListener("change", limitTests);
  if (formats) limitTests();
  document.addEventListener("api:done", (event) => {
    const form = event.target;
    form.closest("dialog")?.close();
    if ("test" in form.dataset) {
      event.preventDefault();
      showTest(event.detail);
    } else if ("secret" in form.dataset) {
      event.preventDefault();
      showSecret(event.detail.secret);
    }
  });

  // The form of a hook. The receiver checks it; each problem is shown next to its field.
  const form = $("[data-hook-form]");
  if (!form) return;
  const isNew = form.dataset.hookForm.startsWith("POST");
  const numbers = (text) => text.split(/[\s,;]+/).filter(Boolean).map((each) => (Number.isNaN(Number(each)) ? each : Number(each)));
  const lines = (text) => text.split("\n").map((each) => each.trim()).filter(Boolean);
  const bodyOf = () => {
    const body = {};
    for (const field of form.elements) {
      if (!field.name) continue;
      const kind = field.dataset.kind, value = field.value.trim();
      if (kind === "choice") {
        body[field.name] ??= [];
        if (field.checked) body[field.name].push(value);
      } else if (kind === "lines") body[field.name] = lines(value);
      else if (kind === "numbers") body[field.name] = numbers(value);
      else if (kind === "number") {
        if (value !== "") body[field.name] = Number(value);
        else if (!isNew) body[field.name] = null;
      } else if (value !== (field.dataset.initial ?? "") || (isNew && value)) body[field.name] = value;
    }
    return body;
  };
  const clear = () => {
    $("#form-problem").hidden = true;
    $$("[data-field]", form).forEach((box) => {
      $(".field-problem", box).hidden = true;
      $$("[aria-invalid]", box).forEach((each) => each.removeAttribute("aria-invalid"));
    });
  };
  // "address: is not ... . concurrency: must be ..." by field; what names no field comes first
  const byField = (message) => {
    const names = $$("[data-field]", form).map((box) => box.dataset.field).join("|");
    const parts = message.split(new RegExp(`(?:^|(?<=[.?!")]) )(${names})(?:\\.\\d+)*: `));
    const found = new Map();
    for (let n = 1; n < parts.length; n += 2) {
      found.set(parts[n], [found.get(parts[n]), parts[n + 1]].filter(Boolean).join(" "));
    }
    return [parts[0].trim(), found];
  };
  const showProblems = (error) => {
    const [general, found] = error.code === "name_taken" ? ["", new Map([["name", `${error.message} ${error.hint}`]])] : byField(error.message || String(error));
    const top = $("#form-problem");
    let first = null;
    for (const [name, text] of found) {
      const box = $(`[data-field="${name}"]`, form), problem = $(".field-problem", box);
      problem.textContent = text;
      problem.hidden = false;
      box.closest("details")?.setAttribute("open", "");
      $$("input, select, textarea", box).forEach((each) => each.setAttribute("aria-invalid", "true"));
      first ??= $("input, select, textarea", box);
    }
    top.textContent = general || (found.size ? "" : error.hint || "");
    if (general && !found.size) top.textContent = `${general} ${error.hint || ""}`;
    top.hidden = !top.textContent;
    (first || top).focus();
  };
  form.addEventListener("submit", async (event) => {
    event.preventDefault();
    const button = $("button.primary", form);
    if (button.getAttribute("aria-busy") === "true") return;
    clear();
    button.setAttribute("aria-busy", "true");
    try {
      const answer = await call(form.dataset.hookForm, bodyOf());
      const hook = answer.hook || answer;
      const open = () => { location.href = new URL(`${form.dataset.next}${encodeURIComponent(hook.name)}`, location.href); };
      if (answer.secret && !$("[name=secret]", form)?.value) showSecret(answer.secret, open);
      else open();
    } catch (error) {
      if (error.code || error.message) showProblems(error);
      else showError(error);
    } finally {
      button.removeAttribute("aria-busy");
    }
  });
})();
