// A picture that is too large is refused here, not after it was sent.
for (const input of document.querySelectorAll('input[data-max-bytes]')) {
  input.addEventListener('change', () => {
    const limit = Number(input.dataset.maxBytes);
    const large = input.files.length && input.files[0].size > 0.99 * limit;
    input.setCustomValidity(large ? `At most ${Math.floor(limit / 1e6)} MB` : '');
    input.reportValidity();
  });
}
