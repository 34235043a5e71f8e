// Puts parts of the page in their place when the server says that they have changed. Forms need no script.
"use strict";
{
  const live = document.getElementById("live");

  const say = (words, isLive) => {
    if (live.textContent !== words) live.textContent = words;
    live.classList.toggle("on", isLive);
  };

  const places = (part) => [...part.querySelectorAll("a, button, input, textarea, summary")];

  // What somebody has typed, opened or is at stays as it is, wherever the new part still has it.
  const put = (part, html) => {
    const focused = document.activeElement.id, place = places(part).indexOf(document.activeElement);
    const before = [...part.querySelectorAll("input[id], textarea[id], details[id]")];
    part.innerHTML = html;
    for (const old of before) {
      const now = document.getElementById(old.id);
      if (!now) continue;
      if (old.localName === "details") now.open = old.open;
      else if (old.type === "checkbox") now.checked = old.checked;
      else if (old.value !== old.defaultValue) now.value = old.value;
    }
    if (place >= 0) (document.getElementById(focused) ?? places(part)[place])?.focus();
  };

  const hear = ({ data }) => {
    if (data.isOver) location.reload();  // to the login, unless somebody has logged in meanwhile
    if ("isLive" in data) say(data.isLive ? "live" : "not connected; trying again", data.isLive);
    for (const [name, html] of Object.entries(data.parts ?? {})) {
      const part = document.getElementById(`part-${name}`);
      const now = document.createElement("template");
      now.innerHTML = html;
      if (part.innerHTML !== now.innerHTML) put(part, html);
    }
  };

  if (window.SharedWorker) {
    const { port } = new SharedWorker("/static/events.js");
    const show = () => port.postMessage(document.hidden ? "hidden" : "seen");
    port.addEventListener("message", hear);
    port.start();
    document.addEventListener("visibilitychange", show);
    addEventListener("pagehide", () => port.postMessage("gone"));
    addEventListener("pageshow", show);
  } else {
    say("load the page again to see what has changed", false);
  }
}
