"use strict";
(() => {
  const page = document.documentElement;
  const KEY = "qalign_jax-theme";
  const stored = (value) => {
    try {
      if (value) localStorage.setItem(KEY, value);
      return localStorage.getItem(KEY);
    } catch {
      return null; // no storage, as some browsers have none for files
    }
  };
  const theme = stored(); // before the page is painted
  if (theme === "light" || theme === "dark") page.dataset.theme = theme;

  const isDark = () =>
    page.dataset.theme ? page.dataset.theme === "dark" : matchMedia("(prefers-color-scheme: dark)").matches;

  const off = new Set();
  const show = () => {
    for (const element of document.querySelectorAll("[data-system]")) {
      element.classList.toggle("off", off.has(element.dataset.system));
    }
  };

  const follow = () => {
    // The link of the section that is being read.
    const links = new Map();
    for (const link of document.querySelectorAll(".sections a")) links.set(link.hash.slice(1), link);
    const seen = new Set();
    const observer = new IntersectionObserver(
      (entries) => {
        for (const { target, isIntersecting } of entries) {
          if (isIntersecting) seen.add(target.id);
          else seen.delete(target.id);
        }
        const now = [...links.keys()].find((id) => seen.has(id));
        if (!now) return;
        for (const [id, link] of links) {
          if (id === now) link.setAttribute("aria-current", "true");
          else link.removeAttribute("aria-current");
        }
      },
      { rootMargin: "-20% 0px -60% 0px" },
    );
    for (const id of links.keys()) {
      const section = document.getElementById(id);
      if (section) observer.observe(section);
    }
  };

  document.addEventListener("DOMContentLoaded", () => {
    document.querySelector("[data-theme-button]").addEventListener("click", () => {
      page.dataset.theme = isDark() ? "light" : "dark";
      stored(page.dataset.theme);
    });
    for (const button of document.querySelectorAll("[data-toggle]")) {
      button.addEventListener("click", () => {
        const system = button.dataset.toggle;
        if (!off.delete(system)) off.add(system);
        button.setAttribute("aria-pressed", String(!off.has(system)));
        show();
      });
    }
    document.addEventListener("drawn", show); // the explorer draws its cards anew
    follow();
  });
})();
