import { show as fill } from "../dom.js";

export async function show(main, context) {
  fill(main, context.heading("Overview"));
}
