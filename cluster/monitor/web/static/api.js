// Questions to the server that the page came from; there is no other.

export class Refused extends Error {}

async function answer(response) {
  if (!response.ok) throw new Refused((await response.text()).trim() || `${response.status}`);
  return response.json();
}

/** Values of a list are asked for one after the other. */
export async function get(path, asked = {}) {
  const query = new URLSearchParams();
  for (const [name, value] of Object.entries(asked)) {
    for (const each of Array.isArray(value) ? value : [value]) {
      if (each !== null && each !== undefined) query.append(name, each);
    }
  }
  return answer(await fetch(`${path}?${query}`, { cache: "no-store" }));
}

export async function post(path, body) {
  const secret = document.querySelector('meta[name="page-secret"]').content;
  const headers = { "Content-Type": "application/json", "X-Foldtrain-Page": secret };
  return answer(await fetch(path, { method: "POST", headers, body: JSON.stringify(body) }));
}

export const pictureUrl = (run, stage, step, version) => `/api/picture?${new URLSearchParams({ run, stage, step, v: version })}`;
