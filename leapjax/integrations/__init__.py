"""leapjax inside other people's programs; each module needs an extra and imports it itself."""
