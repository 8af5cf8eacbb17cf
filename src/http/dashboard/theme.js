// Before anything is drawn, so that nobody is dazzled by the theme that they have not chosen.
"use strict";
{
  let kept = null;
  try {
    kept = localStorage.getItem("hydra-theme");
  } catch {
    // A browser that keeps nothing has the system's theme.
  }
  if (kept === "light" || kept === "dark") document.documentElement.dataset.theme = kept;
}
