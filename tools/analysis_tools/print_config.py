"""Print a config with its bases and overrides merged."""

import argparse

from vitdown.datasets.transforms import check_key_sources
from vitdown.engine.launch import add_config_arguments, load_config, run_tool


def main() -> None:
    parser = argparse.ArgumentParser(description=__doc__)
    add_config_arguments(parser)
    args = parser.parse_args()
    cfg = load_config(args.config, args.cfg_options, args.work_dir)
    check_key_sources(cfg.to_dict())
    print(cfg.pretty_text)


if __name__ == '__main__':
    run_tool(main)
