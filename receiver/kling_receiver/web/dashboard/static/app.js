// What the pages need of a script: ages, buttons that call the API, the keyboard, the colour scheme, live updates.
"use strict";
(() => {
  const root = document.documentElement;
  const base = new URL(root.dataset.base, location.href);
  const $ = (selector, within = document) => within.querySelector(selector);
  const $$ = (selector, within = document) => [...within.querySelectorAll(selector)];
  const isOff = (element) => element.getAttribute("aria-busy") === "true";

  // Ages. <time datetime data-form="ago|since">
  const STEPS = [[86400 * 365, "y"], [86400, "d"], [3600, "h"], [60, "min"], [1, "s"]];
  const age = (seconds) => {
    const [size, unit] = STEPS.find(([each]) => seconds >= each) || [1, "s"];
    return `${Math.max(Math.floor(seconds / size), 0)} ${unit}`;
  };
  const showAge = (time) => {
    const at = new Date(time.dateTime);
    if (Number.isNaN(at.getTime())) return;
    const seconds = (Date.now() - at.getTime()) / 1000;
    const form = time.dataset.form;
    const text = form === "since" ? age(seconds) : seconds < -5 ? `in ${age(-seconds)}`
      : form === "due" ? "now" : seconds < 5 ? "just now" : `${age(seconds)} ago`;
    if (time.textContent !== text) time.textContent = text;
    if (!time.title) time.title = at.toLocaleString();
  };
  const showAges = (within) => $$("time[datetime]", within).forEach(showAge);
  setInterval(() => { if (!document.hidden) showAges(document); }, 1000);
  document.addEventListener("visibilitychange", () => showAges(document));

  // On a phone, forms that are long begin closed. On a wide screen there is no way to close them, so they are open.
  const narrow = matchMedia("(max-width: 860px)");
  const fold = () => $$("details[data-close-narrow]").forEach((each) => { each.open = !narrow.matches; });
  narrow.addEventListener("change", fold);
  if (narrow.matches) fold();

  // A preview that cannot be loaded leaves its place empty
  document.addEventListener("error", (event) => event.target.matches?.("img.thumb") && event.target.classList.add("broken"), true);

  // Forms that lead to an address: empty fields stay out of it, and times in it are in UTC
  const pad = (number) => String(number).padStart(2, "0");
  $$("input[data-utc]").forEach((input) => {
    const hidden = input.form.elements[input.dataset.utc], given = hidden.value;
    // A time without a zone is in UTC.
    const at = given && new Date(/(Z|[+-]\d\d:?\d\d)$/i.test(given) ? given : `${given}Z`);
    if (at && !Number.isNaN(at.getTime())) {
      const day = `${at.getFullYear()}-${pad(at.getMonth() + 1)}-${pad(at.getDate())}`;
      input.value = `${day}T${pad(at.getHours())}:${pad(at.getMinutes())}`;
    }
    input.addEventListener("change", () => { hidden.value = input.value ? new Date(input.value).toISOString() : ""; });
  });
  document.addEventListener("submit", (event) => {
    if (event.target.method !== "get") return;
    const empty = [...event.target.elements].filter((field) => field.name && field.value === "");
    empty.forEach((field) => { field.disabled = true; });
    setTimeout(() => empty.forEach((field) => { field.disabled = false; }));
  });

  // Toasts
  const toast = (text, hint = "", stays = false) => {
    const box = document.createElement("div"), message = document.createElement("div");
    const close = document.createElement("button");
    box.className = "toast";
    message.textContent = text;
    if (hint) {
      const more = document.createElement("span");
      more.className = "hint";
      more.textContent = hint;
      message.append(more);
    }
    close.type = "button";
    close.textContent = "×";
    close.setAttribute("aria-label", "Close this message");
    close.addEventListener("click", () => box.remove());
    box.append(message, close);
    $("#toasts").append(box);
    if (!stays) setTimeout(() => box.remove(), 6000);
  };

  // Calls of the API. An error has a message and a hint.
  const call = async (action, body, headers = {}) => {
    const [method, path] = action.split(/\s+/, 2);
    const options = { method, credentials: "same-origin", headers: { Accept: "application/json", ...headers } };
    if (body !== undefined) {
      options.headers["Content-Type"] = "application/json";
      options.body = JSON.stringify(body);
    }
    let response;
    try {
      response = await fetch(new URL(path.replace(/^\//, ""), base), options);
    } catch {
      throw { message: "The receiver does not answer.", hint: "Check that it runs, then try again." };
    }
    const answer = await response.json().catch(() => null);
    if (response.status === 401) {
      location.reload(); // to the login page, and back from there
    }
    if (!response.ok) {
      throw answer?.error || { message: `The receiver answered ${response.status}.`, hint: "Check its log." };
    }
    return answer;
  };
  const showError = (error) => toast(error.message || String(error), error.hint, true);

  // Asks the question of a button; the dialog's own button says the same as that one.
  const ask = (button) => new Promise((resolve) => {
    const dialog = $("#confirm");
    $("#confirm-text").textContent = button.dataset.confirm;
    $("#confirm-yes").textContent = button.textContent;
    dialog.returnValue = "";
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
    dialog.showModal();
  });

  // The JSON body of a form: names with dots become nested objects; data-type="number|json|boolean" converts a value;
  // empty fields are left out.
  const bodyOf = (form) => {
    const body = {};
    for (const field of form.elements) {
      if (!field.name || field.disabled || (field.type === "radio" && !field.checked)) continue;
      let value = field.type === "checkbox" ? field.checked : field.value;
      if (value === "" || (field.type === "checkbox" && !field.checked && !("always" in field.dataset))) continue;
      if (field.type === "file") continue;
      if (field.dataset.type === "number") value = Number(value);
      if (field.dataset.type === "boolean") value = value === true || value === "true";
      if (field.dataset.type === "json") {
        try {
          value = JSON.parse(value);
        } catch {
          throw { message: `${field.labels?.[0]?.textContent.trim() || field.name} is not valid JSON.`, hint: "Fix it and try again." };
        }
      }
      const names = field.name.split("."), last = names.pop();
      let place = body;
      for (const name of names) place = place[name] ??= {};
      place[last] = value;
    }
    return body;
  };

  const act = async (element, body) => {
    if (isOff(element)) return;
    if (element.dataset.confirm && !(await ask(element))) return;
    element.setAttribute("aria-busy", "true");
    try {
      const answer = await call(element.dataset.api, body);
      const event = new CustomEvent("api:done", { bubbles: true, cancelable: true, detail: answer });
      if (!element.dispatchEvent(event)) return;
      if (element.dataset.goto) location.href = new URL(element.dataset.goto, location.href);
      else if ("reload" in element.dataset) location.reload();
      else if (element.dataset.done) toast(element.dataset.done);
    } catch (error) {
      showError(error);
    } finally {
      element.removeAttribute("aria-busy");
    }
  };
  document.addEventListener("click", (event) => {
    const button = event.target.closest("button[data-api]");
    if (button) act(button, button.dataset.body ? JSON.parse(button.dataset.body) : undefined);
  });
  document.addEventListener("submit", (event) => {
    const form = event.target.closest("form[data-api]");
    if (!form) return;
    event.preventDefault();
    try {
      act(form, bodyOf(form));
    } catch (error) {
      showError(error);
    }
  });

  // Copying: the text of the button, or of the element that it names
  document.addEventListener("click", async (event) => {
    const button = event.target.closest("[data-copy], [data-copy-from]");
    if (!button) return;
    const source = document.getElementById(button.dataset.copyFrom);
    try {
      await navigator.clipboard.writeText(button.dataset.copy ?? source.textContent);
      toast("Copied.");
    } catch {
      if (source) getSelection().selectAllChildren(source);
      else getSelection().selectAllChildren(button.previousElementSibling || button);
      toast("The browser does not let this page copy.", "The text is selected: press Ctrl+C.", true);
    }
  });

  // The selection in a list, and what is done with all of it. It outlives live updates of the rows.
  const chosen = new Set();
  const showChosen = () => {
    const bar = $("#bulk");
    if (!bar) return;
    const boxes = $$("[data-selectable] tbody input[type=checkbox]");
    const present = new Set(boxes.map((box) => box.value));
    for (const id of chosen) if (!present.has(id)) chosen.delete(id);
    boxes.forEach((box) => { box.checked = chosen.has(box.value); });
    bar.hidden = chosen.size === 0;
    $("#bulk-count").textContent = chosen.size;
    const all = $("#all-tasks");
    if (all) {
      all.checked = boxes.length > 0 && chosen.size === boxes.length;
      all.indeterminate = chosen.size > 0 && chosen.size < boxes.length;
    }
  };
  document.addEventListener("change", (event) => {
    const box = event.target;
    if (box.id === "all-tasks") {
      $$("[data-selectable] tbody input[type=checkbox]").forEach((each) => {
        if (box.checked) chosen.add(each.value); else chosen.delete(each.value);
      });
    } else if (box.matches("[data-selectable] tbody input[type=checkbox]")) {
      if (box.checked) chosen.add(box.value); else chosen.delete(box.value);
    } else return;
    showChosen();
  });
  document.addEventListener("click", async (event) => {
    if (event.target.closest("#bulk-none")) { chosen.clear(); showChosen(); return; }
    const button = event.target.closest("[data-bulk]");
    if (!button || isOff(button)) return;
    if (button.dataset.confirm && !(await ask(button))) return;
    button.setAttribute("aria-busy", "true");
    const ids = [...chosen], failures = [];
    for (const id of ids) {
      const path = button.dataset.bulk.replaceAll("{id}", encodeURIComponent(id));
      const body = button.dataset.body?.replaceAll("{id}", id); // no id has a character that JSON escapes
      try {
        await call(path, body ? JSON.parse(body) : undefined);
        chosen.delete(id);
      } catch (error) {
        failures.push(error);
      }
    }
    button.removeAttribute("aria-busy");
    showChosen();
    const done = ids.length - failures.length;
    if (done) toast(`${done} of ${ids.length}: ${button.dataset.done}`);
    if (failures.length) {
      toast(`${failures.length} of ${ids.length} failed: ${failures[0].message}`, `${failures[0].hint || ""} They stay selected.`, true);
    }
  });

  // The colour scheme: light, dark, or the system's while nothing was chosen
  document.addEventListener("click", (event) => {
    if (!event.target.closest("[data-theme-switch]")) return;
    const isDark = root.dataset.theme ? root.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;
    root.dataset.theme = isDark ? "light" : "dark";
    document.cookie = `kling-theme=${root.dataset.theme}; Path=${base.pathname}; Max-Age=31536000; SameSite=Lax`;
  });

  // The keyboard
  const showShortcuts = () => { const dialog = $("#shortcuts"); if (dialog && !dialog.open) dialog.showModal(); };
  document.addEventListener("click", (event) => { if (event.target.closest("[data-show-shortcuts]")) showShortcuts(); });
  let prefixAt = 0;
  document.addEventListener("keydown", (event) => {
    if (event.ctrlKey || event.metaKey || event.altKey || event.target.closest?.("input, select, textarea, [contenteditable], dialog")) return;
    if (event.key === "/") {
      const search = $("[data-search]");
      if (search) {
        event.preventDefault();
        search.closest("details")?.setAttribute("open", "");
        search.focus();
        search.select?.();
      }
    } else if (event.key === "?") {
      showShortcuts();
    } else if (event.key === "g") {
      prefixAt = Date.now();
      return;
    } else if ((event.key === "j" || event.key === "k") && Date.now() - prefixAt >= 1500) {
      const rows = $$(".table tbody tr").filter((row) => $("a[href]:not([tabindex='-1'])", row));
      const at = rows.findIndex((row) => row.contains(document.activeElement));
      const row = rows[event.key === "j" ? Math.min(at + 1, rows.length - 1) : Math.max(at - 1, 0)];
      if (row) {
        $("a[href]:not([tabindex='-1'])", row).focus();
        row.scrollIntoView({ block: "nearest" });
      }
    } else if (event.key === "x" && Date.now() - prefixAt >= 1500) {
      $("input[type=checkbox]", document.activeElement.closest("tr") || document.createElement("p"))?.click();
    } else if (Date.now() - prefixAt < 1500) {
      $(`.nav a[data-key="${CSS.escape(event.key)}"]`)?.click();
    }
    prefixAt = 0;
  });

  // Parts of a page that are loaded again while they are seen; what was open in them stays open.
  const REFRESH_MS = 15000;
  setInterval(() => {
    if (!document.hidden) $$("[data-refresh]").forEach((part) => htmx.trigger(part, "refresh"));
  }, REFRESH_MS);
  let opened = [];
  document.addEventListener("htmx:beforeSwap", (event) => {
    if (event.detail.target.matches("[data-refresh]")) opened = $$("details[open][id]", event.detail.target);
  });
  document.addEventListener("htmx:afterSwap", () => {
    opened.forEach((each) => document.getElementById(each.id)?.setAttribute("open", ""));
    opened = [];
    showAges(document);
  });
  document.addEventListener("htmx:afterRequest", (event) => {
    if (event.target.matches?.("[data-refresh]") || event.detail.elt?.matches?.("[data-refresh]")) setLive(event.detail.successful ? "on" : "lost");
  });

  // Live updates. htmx and its extension for SSE do the swapping.
  // A page that is not looked at has no stream: browsers open few connections to one host, and more tabs would hang.
  const HIDDEN_MS = 10000;
  const live = $("#live");
  let source = null, lastState = "", hiding = 0, isPaused = false;
  const setLive = (state) => {
    if (!live || live.dataset.state === state) return;
    live.dataset.state = state;
    $(".live-text", live).textContent = { on: "Live", lost: "Reconnecting …" }[state] || "";
  };
  const pause = () => {
    if (!source) return;
    source.close();
    isPaused = true;
    setLive("off");
  };
  const resume = () => {
    if (!isPaused) return;
    isPaused = false;
    const old = $("[sse-connect]"), fresh = old.cloneNode(true);
    const url = new URL(old.getAttribute("sse-connect"), location.href);
    if (lastState) url.searchParams.set("state", lastState);
    fresh.setAttribute("sse-connect", url.pathname + url.search);
    old.replaceWith(fresh);
    htmx.process(fresh);
  };
  document.addEventListener("visibilitychange", () => {
    clearTimeout(hiding);
    if (document.hidden) hiding = setTimeout(pause, HIDDEN_MS);
    else resume();
  });
  document.addEventListener("htmx:sseOpen", (event) => {
    setLive("on");
    if (source === event.detail.source) return;
    source = event.detail.source;
    source.addEventListener("session-ended", () => location.reload());
  });
  document.addEventListener("htmx:sseError", async (event) => {
    if (isPaused) return;
    setLive("lost");
    if (event.detail.source.readyState !== EventSource.CLOSED) return;
    // Refused: either the session has ended, or the receiver is busy or starting.
    try {
      const response = await fetch(location.href, { method: "HEAD", redirect: "manual", credentials: "same-origin" });
      if (response.type === "opaqueredirect") location.reload();
    } catch { /* the extension tries again */ }
  });
  // What a reader has opened, focused or started to play outlives an update of the part that it is in.
  let kept = null;
  document.addEventListener("htmx:oobBeforeSwap", (event) => {
    const { target, fragment } = event.detail, old = $$(":scope > [data-version]", target);
    if (old.length) { // children that did not change stay: a video plays on
      const known = new Map(old.map((each) => [each.id, each]));
      const wanted = [...fragment.children].map((each) => {
        const same = known.get(each.id);
        return same?.dataset.version === each.dataset.version ? same : each;
      });
      if (!wanted.length || [...fragment.children].some((each) => known.has(each.id))) {
        event.detail.shouldSwap = false;
        [...target.children].filter((each) => !wanted.includes(each)).forEach((each) => each.remove());
        wanted.forEach((each, n) => { if (target.children[n] !== each) target.insertBefore(each, target.children[n] || null); });
        return;
      }
    }
    const focused = target.contains(document.activeElement) ? document.activeElement : null;
    kept = {
      details: $$("details[id]", target).map((each) => [each.id, each.open]),
      focus: focused && [focused.id, focused.dataset.api, focused.dataset.copy, focused.textContent],
      scrolled: $$("[id]", target).filter((each) => each.scrollTop || each.scrollLeft).map((each) => [each.id, each.scrollTop, each.scrollLeft]),
    };
  });
  document.addEventListener("htmx:oobAfterSwap", () => {
    if (!kept) return;
    const { details, focus, scrolled } = kept;
    kept = null;
    details.forEach(([id, open]) => document.getElementById(id)?.toggleAttribute("open", open));
    scrolled.forEach(([id, top, left]) => document.getElementById(id)?.scrollTo(left, top));
    if (!focus || document.activeElement !== document.body) return;
    const [id, api, copy, text] = focus;
    const same = (each) => (id ? each.id === id : each.dataset.api === api && each.dataset.copy === copy && each.textContent === text);
    $$("button, a, summary, [tabindex]").find(same)?.focus({ preventScroll: true });
  });
  document.addEventListener("htmx:oobAfterSwap", (event) => {
    const element = event.detail.elt || event.target;
    if (element?.matches?.("tr[id]")) element.classList.add("fresh");
  });
  document.addEventListener("htmx:sseMessage", (event) => {
    lastState = event.detail.lastEventId || lastState;
    showAges(document);
    showChosen();
  });

  window.kling = { call, toast, showError, ask, base };
  showAges(document);
  showChosen();
})();
