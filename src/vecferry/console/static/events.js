// One stream of what has changed for all tabs of a browser, which has six connections; none while no tab is seen.
"use strict";
{
  const tabs = new Map();  // whether it is seen, by its port
  let source = null, parts = {};

  const tell = (message) => { for (const port of tabs.keys()) port.postMessage(message); };

  const close = () => {
    source?.close();
    source = null;
    parts = {};
  };

  const open = () => {
    source = new EventSource("/events");
    source.addEventListener("open", () => tell({ isLive: true }));
    source.addEventListener("parts", (event) => {
      const changed = JSON.parse(event.data);
      Object.assign(parts, changed);
      tell({ parts: changed });
    });
    source.addEventListener("over", () => {
      close();
      tell({ isOver: true });
    });
    source.addEventListener("error", () => {
      tell({ isLive: false });
      if (source?.readyState !== EventSource.CLOSED) return;  // it tries again by itself
      close();
      setTimeout(settle, 3000);
    });
  };

  const settle = () => {
    const isSeen = [...tabs.values()].includes(true);
    if (!isSeen) close();
    else if (!source) open();
  };

  addEventListener("connect", ({ ports: [port] }) => {
    port.addEventListener("message", ({ data }) => {
      if (data === "gone") tabs.delete(port);
      else tabs.set(port, data === "seen");
      if (source?.readyState === EventSource.OPEN) port.postMessage({ isLive: true, parts });
      settle();
    });
    port.start();
  });
}
