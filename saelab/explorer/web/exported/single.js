// Data of a page that is one file: the latent inside it, and nothing else.
"use strict";
(() => {
  const own = JSON.parse(document.getElementById("data").textContent);
  globalThis.SAELAB_STATIC = {
    get(path) {
      if (path === "/" || path.startsWith(`/run/${own.run}/latent/${own.latent}`)) return Promise.resolve(own);
      return Promise.reject(new Error(`this file holds latent ${own.latent} of ${own.run} only`));
    },
  };
})();
