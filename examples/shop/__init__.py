"""A small shop: users, orders and a stock, with receivers that run no matter who wrote.

`app` is what a dispatcher serves: `dispatcher run examples.shop.app:registry`.
"""
