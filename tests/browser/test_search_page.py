"""The search page in a real browser, as a user sees it: ``make test-browser``."""

import re
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from PIL import Image
from selenium import webdriver
from selenium.webdriver.common.by import By
from selenium.webdriver.support.ui import WebDriverWait

from tests.conftest import ROOT, run_tool

pytestmark = pytest.mark.browser

ARTIFACTS = ROOT / 'work_dirs/test_artifacts'
FLAGS = """
    --headless --no-sandbox --disable-gpu --disable-quic --no-first-run --disable-sync
    --disable-background-networking --disable-component-update --window-size=1200,900
"""


def program(*names: str) -> str:
    for name in names:
        if found := shutil.which(name):
            return found
    pytest.fail(
        f'{" or ".join(names)} was not found: browser tests need Chromium and its driver '
        '(Debian: apt install chromium chromium-driver)'
    )


@pytest.fixture(scope='module')
def browser(tmp_path_factory):
    options = webdriver.ChromeOptions()
    options.binary_location = program('chromium', 'chromium-browser', 'google-chrome')
    for flag in FLAGS.split():
        options.add_argument(flag)
    options.add_argument(f'--user-data-dir={tmp_path_factory.mktemp("chromium")}')
    service = webdriver.ChromeService(program('chromedriver'))
    driver = webdriver.Chrome(options, service)
    driver.set_page_load_timeout(60)
    yield driver
    driver.quit()


@pytest.fixture(scope='module')
def persons(tmp_path_factory) -> Path:
    """Pictures large enough to be looked at."""
    root = tmp_path_factory.mktemp('persons') / 'set'
    run_tool(
        'tools/dataset_converters/make_synthetic_reid.py', root, '--num-train-ids', '2',
        '--num-test-ids', '6', '--num-cameras', '2', '--images-per-camera', '3',
    )  # fmt: skip
    return root / 'bounding_box_test'


@pytest.fixture(scope='module')
def address(tmp_path_factory, persons, tiny_config, tiny_checkpoint):
    """Address of a page that may add pictures, searched by camera."""
    folder = tmp_path_factory.mktemp('page')
    rows = [f'{path},{path.name.split("_c")[1][0]}' for path in persons.iterdir()]
    (folder / 'table.csv').write_text('\n'.join(['path,camera', *rows]))
    model = (tiny_config, tiny_checkpoint)
    run_tool(
        'tools/embed.py', *model, persons, '--metadata', folder / 'table.csv',
        '--out', folder / 'persons.npz',
    )  # fmt: skip
    run_tool('tools/index.py', folder / 'gallery', folder / 'persons.npz')
    command = [
        sys.executable, 'tools/serve.py', *model, folder / 'gallery', '--port', '0',
        '--allow-add', folder / 'added',
    ]  # fmt: skip
    with (folder / 'errors.txt').open('w+') as errors:
        server = subprocess.Popen(
            list(map(str, command)), cwd=ROOT, stdout=subprocess.PIPE, stderr=errors, text=True
        )
        try:
            # The output ends if the server does.
            for line in server.stdout:
                if found := re.match(r'Search page: (\S+)', line):
                    break
            else:
                errors.seek(0)
                pytest.fail(f'the page did not start:\n{errors.read()}')
            yield found[1]
        finally:
            server.terminate()
            server.wait(30)


def submit(browser, form: str, **fields) -> None:
    """Fill in a form, send it and wait for the next page."""
    element = browser.find_element(By.CSS_SELECTOR, f'form#{form}')
    for name, value in fields.items():
        field = element.find_element(By.CSS_SELECTOR, f'[name="{name.replace("_", " ")}"]')
        if field.get_attribute('type') == 'number':
            field.clear()
        field.send_keys(str(value))
    element.find_element(By.TAG_NAME, 'button').click()
    WebDriverWait(browser, 60).until(lambda _: is_stale(element))


def is_stale(element) -> bool:
    try:
        return not element.is_enabled()
    except Exception:
        return True


def matches(browser) -> list[str]:
    """Names of the pictures found, all of which must be visible."""
    pictures = browser.find_elements(By.CSS_SELECTOR, '#matches img')
    shown = 'return arguments[0].complete && arguments[0].naturalWidth > 0'
    for picture in pictures:
        browser.execute_script('arguments[0].scrollIntoView()', picture)
        WebDriverWait(browser, 30).until(lambda b, p=picture: b.execute_script(shown, p))
    browser.execute_script('window.scrollTo(0, 0)')
    return [picture.get_attribute('alt') for picture in pictures]


def keep_screenshot(browser, name: str) -> None:
    ARTIFACTS.mkdir(parents=True, exist_ok=True)
    assert browser.save_screenshot(str(ARTIFACTS / f'{name}.png'))


def test_an_uploaded_query_finds_its_picture_first(browser, address, persons, tmp_path):
    wanted = sorted(persons.iterdir())[7]
    # Another file of another format: it is found by what it shows.
    Image.open(wanted).save(tmp_path / 'query.png')
    browser.get(address)
    count = len(list(persons.iterdir()))
    assert f'{count} images' in browser.find_element(By.TAG_NAME, 'header').text
    submit(browser, 'upload', image=tmp_path / 'query.png', k=8)
    found = matches(browser)
    assert len(found) == 8
    assert found[0] == wanted.name
    assert browser.find_element(By.ID, 'query').size['width'] > 20
    keep_screenshot(browser, 'search_page')
    # The same picture again, and on from a match: conditions stay.
    submit(browser, 'again', where_camera=2, k=4)
    assert browser.find_element(By.ID, 'query')
    found = matches(browser)
    assert found
    browser.find_element(By.CSS_SELECTOR, '#matches li:last-child a').click()
    assert matches(browser)[0] == found[-1]
    assert all('_c2' in name for name in found + matches(browser))
    field = browser.find_element(By.CSS_SELECTOR, 'form#again [name="where camera"]')
    assert field.get_attribute('value') == '2'


def test_a_picked_query_is_searched_again_under_a_condition(browser, address):
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, '#samples a').click()
    assert len(matches(browser)) == 12
    submit(browser, 'again', where_camera=2, k=6)
    found = matches(browser)
    assert found
    assert all('_c2' in name for name in found)
    field = browser.find_element(By.CSS_SELECTOR, 'form#again [name="where camera"]')
    assert field.get_attribute('value') == '2'


def test_attention_is_shown_on_request(browser, address):
    browser.get(address)
    browser.find_element(By.CSS_SELECTOR, '#samples li:nth-child(9) a').click()
    plain = browser.find_element(By.ID, 'query').get_attribute('src')
    browser.find_element(By.CSS_SELECTOR, 'form#again [name="attention"]').click()
    submit(browser, 'again', k=6)
    assert len(matches(browser)) == 6
    assert browser.find_element(By.ID, 'query').get_attribute('src') != plain
    keep_screenshot(browser, 'search_page_attention')


def test_what_is_no_picture_gets_one_message(browser, address, tmp_path):
    (tmp_path / 'notes.jpg').write_text('no picture')
    browser.get(address)
    submit(browser, 'upload', image=tmp_path / 'notes.jpg')
    assert 'no JPEG' in browser.find_element(By.CSS_SELECTOR, '[role=alert]').text


def test_a_picture_that_is_too_large_is_not_sent(browser, address, tmp_path):
    (tmp_path / 'large.jpg').write_bytes(bytes(10_000_000))
    browser.get(address)
    field = browser.find_element(By.CSS_SELECTOR, '#upload [type=file]')
    field.send_keys(str(tmp_path / 'large.jpg'))
    assert field.get_attribute('validationMessage') == 'At most 10 MB'


def test_an_added_picture_is_found(browser, address, tmp_path):
    Image.new('RGB', (64, 128), 'green').save(tmp_path / 'green.png')
    browser.get(address)
    submit(browser, 'add', image=tmp_path / 'green.png', column_camera=7)
    found = matches(browser)
    assert found[0].endswith('.png')
    columns = browser.find_elements(By.CSS_SELECTOR, '#matches li:first-child .column')
    assert [column.text for column in columns] == ['camera 7']
