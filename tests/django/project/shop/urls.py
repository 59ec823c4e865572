"""Where the views are."""

from __future__ import annotations

from django.urls import path

from shop import views

urlpatterns = [
    path("change/<str:name>/", views.change),
    path("by-post/<str:name>/", views.by_post),
    path("twice/<str:name>/", views.twice),
    path("class/<str:name>/", views.Change.as_view()),
    path("late/<str:name>/", views.Late.as_view()),
    path("mistaken/<str:name>/", views.Mistaken.as_view()),
    path("async-class/<str:name>/", views.AsyncChange.as_view()),
    path("async/<str:name>/", views.achange),
    path("waiting/", views.waiting),
    path("orm/", views.orm),
]
