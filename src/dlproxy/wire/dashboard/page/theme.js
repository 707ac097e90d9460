// Light or dark, before the page is drawn: as the reader has chosen here, else as the system says.
"use strict";
{
  const choice = localStorage.getItem("theme");
  if (choice === "light" || choice === "dark") document.documentElement.dataset.theme = choice;
}
