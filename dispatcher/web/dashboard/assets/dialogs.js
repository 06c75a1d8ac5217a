// Dialogs: for the token, and for confirmations.

import { post, token } from "./api.js";
import { byId, write } from "./dom.js";

export function confirm(title, text, yes) {
  const dialog = byId("confirm-dialog");
  write(byId("confirm-title"), title);
  write(byId("confirm-text"), text);
  write(byId("confirm-yes"), yes);
  dialog.returnValue = "no";
  dialog.showModal();
  return new Promise((resolve) => {
    dialog.addEventListener("close", () => resolve(dialog.returnValue === "yes"), { once: true });
  });
}

export function setUpUnlocking(onUnlocked) {
  const dialog = byId("unlock-dialog");
  const field = byId("token");
  const trouble = byId("token-trouble");
  byId("unlock").addEventListener("click", () => {
    field.value = "";
    write(trouble, "");
    dialog.showModal();
  });
  dialog.querySelector("[data-close]").addEventListener("click", () => dialog.close());
  dialog.querySelector("form").addEventListener("submit", async (event) => {
    event.preventDefault();
    try {
      await post("unlock", {}, field.value);
    } catch (error) {
      write(trouble, error.message);
      return;
    }
    token.set(field.value);
    dialog.close();
    onUnlocked();
  });
}
