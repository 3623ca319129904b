"""The dashboards, as code: `python -m grafana` writes them to grafana/dashboards.

They need grafana-foundation-sdk, which `make build` installs.
"""
