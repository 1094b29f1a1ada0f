// What the theme leaves out for readers without a mouse or without eyes (axe finds no violation).
function describe() {
  document.querySelector(".md-search")?.setAttribute("aria-label", "Search");
  document.querySelectorAll(".md-code__nav").forEach((nav, number) => {
    nav.setAttribute("aria-label", `Actions for code ${number + 1}`);
  });
  document.querySelectorAll("pre > code, .md-typeset__table").forEach((element) => {
    element.tabIndex = 0; // it may scroll
  });
}

describe();
new MutationObserver(describe).observe(document.body, { childList: true, subtree: true });
